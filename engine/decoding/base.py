"""What every decoder gets and gives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..family import Family
from ..sampling import Noise, Purpose, SamplingParams
from ..session import Session
from ..stats import Recorder


@dataclass(frozen=True)
class Batch:
    """Requests that are decoded together.

    Args:
        family: the models.
        cond: condition features [B, cond_len, cond_dim].
        uncond: the unconditional ones, or None without guidance.
        seeds: one a request.
        sampling: shared by the batch.
        recorder: counts, times, progress.
    """

    family: Family
    cond: Tensor
    uncond: Tensor | None
    seeds: list[int]
    sampling: SamplingParams
    recorder: Recorder

    @property
    def size(self) -> int:
        return len(self.seeds)

    def session(self, grid: int, role: str) -> Session:
        """A fresh KV cache on a grid, its prefix filled."""
        return Session(self.family.ar, grid, self.cond, self.uncond, self.recorder, role)

    def noise(self, purpose: Purpose) -> Noise:
        return Noise(self.seeds, self.family.ar.config.vocab_size, purpose, self.cond.device)


@dataclass(frozen=True)
class Outcome:
    """Tokens int64 [B, H, W] on the target grid; rejection and coverage [B] (shares) and islands [B] if verified."""

    tokens: Tensor
    rejection: Tensor | None = None
    coverage: Tensor | None = None
    islands: Tensor | None = None


@dataclass(frozen=True)
class Decoder:
    """Base of all decoders. `resolve` fills what was left open from the family; `decode` runs a batch."""

    name: ClassVar[str] = ""

    def resolve(self, family: Family) -> Decoder:
        """This decoder with every open setting taken from the family; ValueError when the family lacks it."""
        return self

    def settings(self) -> dict[str, Any]:
        """Settings for stats and metadata."""
        return asdict(self)

    def decode(self, batch: Batch) -> Outcome:
        raise TypeError(f"{type(self).__name__} does not decode")
