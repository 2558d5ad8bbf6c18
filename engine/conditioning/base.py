"""What every way of conditioning gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import shown, told


@dataclass(frozen=True)
class Condition:
    """What a batch of requests asks its models for.

    Args:
        features: [B, T, ...]: float features, or int64 class ids [B, 1, 1].
        mask: bool [B, T] on the CPU, prefix slots that may be seen; None is all.
        null: features of the unconditional branch, like `features`, where they are not the same for every prompt.
    """

    features: Tensor
    mask: Tensor | None = None
    null: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: slice) -> Condition:
        mask, null = (None if t is None else t[index] for t in (self.mask, self.null))
        return Condition(self.features[index], mask, null)


def check_condition(given: Any, like: Tensor, count: int) -> None:
    """ValueError unless `given` is a condition of `count` prompts, its features shaped like `like` [1, ...]."""
    if not isinstance(given, Condition) or not isinstance(given.features, Tensor):
        raise ValueError(f"features must be a Condition, see Conditioner.precomputed; got {shown(given)}")
    wanted, found = [count, *like.shape[1:]], list(given.features.shape)
    if found != wanted or given.features.is_meta or given.features.is_floating_point() != like.is_floating_point():
        raise ValueError(f"features of {count} prompt(s) must be {like.dtype} {wanted}, got {told(given.features)}")
    mask = given.mask
    if mask is not None and not (
        isinstance(mask, Tensor) and mask.dtype == torch.bool and list(mask.shape) == wanted[:2]
    ):
        raise ValueError(f"the mask of {count} condition(s) must be bool {wanted[:2]}, got {told(mask)}")


class Conditioner(ABC):
    """Prompts to conditions.

    Attributes:
        kind: its name in family.json.
        example: a prompt to warm up with.
        weights: modules that are stored in the family's folder, by file name.
    """

    kind: ClassVar[str]
    example: str = "warm-up"

    def __init__(self) -> None:
        self.weights: dict[str, nn.Module] = {}
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Where and in what type to compute."""
        self.device, self.dtype = device, dtype
        for module in self.weights.values():
            module.to(device, dtype)

    def check(self, prompt: str) -> str | None:
        """A warning about a prompt, or None; ValueError when it cannot be drawn."""
        return None

    @abstractmethod
    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        """The condition of prompts.

        Args:
            prompts: one an image.
            seeds: of the images, for kinds that draw a condition for each; to the others a prompt is all.

        Raises:
            ValueError, ImportError: what is missing.
        """

    @abstractmethod
    def null(self, batch: int) -> Tensor:
        """Features of the unconditional branch [B, T, ...]."""

    def like(self) -> Tensor | None:
        """Features of the shape and type of one condition, where `null` takes more than sizes; None: as `null`."""
        return None

    def precomputed(self, array: Tensor) -> Condition:
        """The condition of precomputed features [B, n, ...]; ValueError when the kind takes none."""
        raise ValueError(f"this family takes no precomputed features (its conditions are {self.kind})")

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What family.json holds of it, beside its kind."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Conditioner:
        """The conditioner that `to_dict` described; its weights are yet to be loaded."""
