"""Sets of images as metrics see them: the pixels, their features, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.family import Family

CHUNK = 32


@dataclass(frozen=True)
class ImageSet:
    """Images, of which one of the two may be missing.

    Attributes:
        images: uint8 [N, S, S, 3]; None where the images may not be given out.
        features: float32 [N, d] of Lite0; None where they are not known (yet), or the network is not installed.

    Raises:
        ValueError: both are missing, or they are of different numbers of images.
    """

    images: NDArray[np.uint8] | None = None
    features: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        counts = {len(known) for known in (self.images, self.features) if known is not None}
        if len(counts) != 1:
            raise ValueError(f"a set of images needs images, or features, or as many of both; got {sorted(counts)}")

    def __len__(self) -> int:
        return len(next(known for known in (self.images, self.features) if known is not None))

    @property
    def shown(self) -> NDArray[np.uint8]:
        """The images; ValueError where only features are kept."""
        if self.images is None:
            raise ValueError("of these images only features are kept; this needs the images")
        return self.images

    def first(self, count: int) -> ImageSet:
        """The first `count` of them, or all where there are fewer."""
        images, features = self.images, self.features
        return ImageSet(None if images is None else images[:count], None if features is None else features[:count])


def as_array(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Pillow images of one size -> uint8 [B, H, W, 3]."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images of one size are wanted, got {sorted(sizes) or 'none'}")
    return np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in images])


@torch.inference_mode()
def encode(family: Family, images: NDArray[np.uint8], batch: int = CHUNK) -> torch.Tensor:
    """Images uint8 [N, S, S, 3] as tokens int64 [N, h, w]; `batch` at a time, so that memory does not grow with N."""
    parts = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch]).to(family.device)
        parts.append(family.tokenizer.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1))
    return torch.cat(parts)


def reconstruct(engine: Engine, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images uint8 [N, S, S, 3] through the family's tokenizer: the best that its tokens can show."""
    tokens = encode(engine.family, images)
    return np.concatenate([as_array(engine.to_images(part)) for part in tokens.split(CHUNK)])


def psnr(made: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images uint8 [N, S, S, 3]."""
    error = ((made.astype(np.float64) - wanted) ** 2).mean(axis=(1, 2, 3)) / 255**2
    return float((-10 * np.log10(np.maximum(error, 1e-10))).mean())
