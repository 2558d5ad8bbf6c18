"""Captioned images as tokens, kept in memory so that each is rendered and encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..engine.models.kinds import ImageTokenizer
from .sources import ImageSource


def as_input(pictures: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """uint8 images [S, S, 3] -> float32 [B, 3, S, S] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def tokens_of(tokenizer: ImageTokenizer, pictures: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Tokens [B, grid*grid] of uint8 images [S, S, 3]."""
    # In float32 even inside bf16 training: rounding would give other tokens than generation and evaluation see.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        image = as_input(pictures, device).contiguous(memory_format=torch.channels_last)
        return tokenizer.encode(image).flatten(1)


@dataclass(frozen=True)
class Drawn:
    """Images of a batch: their numbers, captions, and tokens [B, grid*grid] by grid."""

    numbers: list[int]
    captions: list[str]
    tokens: dict[int, Tensor]


class TokenPool:
    """Draws captioned images as tokens.

    Encoding images takes longer than a step of a small model. With `size` above 0 there are so many different
    images, and the tokens of each are kept from its first use on; 0 draws a new image every time. Image i depends
    on i alone, so a resumed run sees the same pool.

    Args:
        source: of the images.
        tokenizer: frozen; moved to the device of the first draw.
        size: number of images, at least 0.
    """

    def __init__(self, source: ImageSource, tokenizer: ImageTokenizer, size: int = 0) -> None:
        if size < 0:
            raise ValueError(f"pool must be at least 0 images, got {size}")
        self.source, self.tokenizer, self.size = source, tokenizer, size
        self._kept: dict[tuple[int, int], tuple[str, NDArray[np.int32]]] = {}

    def draw(self, rng: np.random.Generator, grids: Sequence[int], count: int, device: torch.device) -> Drawn:
        """`count` images, each on all of `grids`."""
        return self._drawn(rng.integers(self.size or 2**62, size=count).tolist(), grids, device)

    def all(self, grid: int, device: torch.device) -> Drawn:
        """Every image of a pool on one grid; ValueError for a pool that draws a new one every time."""
        if not self.size:
            raise ValueError("a pool without a size has no end")
        return self._drawn(list(range(self.size)), (grid,), device)

    def _drawn(self, numbers: list[int], grids: Sequence[int], device: torch.device) -> Drawn:
        sizes = tuple(g * self.tokenizer.config.patch for g in grids)
        new = [n for n in dict.fromkeys(numbers) if any((n, g) not in self._kept for g in grids)]
        drawn = [self.source.captioned(np.random.default_rng(n), sizes) for n in new]
        kept = self._kept if self.size else {}
        for i, grid in enumerate(grids):
            if new:
                tokens = tokens_of(self.tokenizer, [pictures[i] for _, pictures in drawn], device).cpu().numpy()
                kept.update({(n, grid): (d[0], t.astype(np.int32)) for n, d, t in zip(new, drawn, tokens, strict=True)})
        return Drawn(
            numbers,
            [kept[n, grids[0]][0] for n in numbers],
            {g: torch.from_numpy(np.stack([kept[n, g][1] for n in numbers])).long().to(device) for g in grids},
        )

    def pictures(self, drawn: Drawn, grid: int, device: torch.device) -> Tensor:
        """The images of a draw at one size: float32 [B, 3, S, S] in -1..1."""
        size = grid * self.tokenizer.config.patch
        return as_input([self.source.captioned(np.random.default_rng(n), (size,))[1][0] for n in drawn.numbers], device)
