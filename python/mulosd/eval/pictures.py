"""Sets of pictures as measures see them: the pictures, their features, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from .reader import as_array

if TYPE_CHECKING:
    from ..engine.engine import Engine

CHUNK = 32


@dataclass(frozen=True)
class PictureSet:
    """Pictures, of which one of the two may be missing.

    Attributes:
        images: uint8 [N, S, S, 3]; None where the pictures may not be given out.
        features: float32 [N, d] of Lite0; None where they are not known (yet), or the network is not installed.

    Raises:
        ValueError: both are missing, or they are of different numbers of pictures.
    """

    images: NDArray[np.uint8] | None = None
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        counts = {len(known) for known in (self.images, self.features) if known is not None}
        if len(counts) != 1:
            raise ValueError(f"a set of pictures needs pictures, or features, or as many of both; got {sorted(counts)}")

    def __len__(self) -> int:
        return len(next(known for known in (self.images, self.features) if known is not None))

    @property
    def shown(self) -> NDArray[np.uint8]:
        """The pictures; ValueError where only features are kept."""
        if self.images is None:
            raise ValueError("of these pictures only features are kept; this needs the pictures")
        return self.images

    def first(self, count: int) -> PictureSet:
        """The first `count` of them, or all where there are fewer."""
        images, features = self.images, self.features
        return PictureSet(None if images is None else images[:count], None if features is None else features[:count])


def reconstruct(engine: Engine, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures uint8 [N, S, S, 3] encoded and decoded by the family's tokenizer: the best that tokens can show."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), CHUNK):
            x = torch.from_numpy(images[start : start + CHUNK]).to(engine.family.device)
            tokens = engine.family.tokenizer.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1)
            parts.append(as_array(engine.to_images(tokens)))
    return np.concatenate(parts)
