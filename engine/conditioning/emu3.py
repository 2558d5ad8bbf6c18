"""Prompts of Emu3-Gen (arXiv 2409.18869): the text, then the tokens that begin an image and name its size in codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from .prompts import TemplateConditioner

# What the unconditional branch asks for.
NEGATIVE = "low quality, blurry, distorted, watermark"


class Emu3Conditioner(TemplateConditioner):
    """Guidance leads away from a negative prompt, the same for every image.

    Args:
        source, length, grids: see `TemplateConditioner`.
        patch: pixels a code, by which the processor counts.
        negative: the negative prompt.
    """

    kind: ClassVar[str] = "emu3"

    def __init__(
        self, source: str | Path, length: int, grids: Sequence[int], patch: int = 8, negative: str = NEGATIVE
    ) -> None:
        super().__init__(source, length, grids)
        self.patch, self.negative = patch, negative

    def tokens(self, prompt: str, grid: int) -> list[int]:
        # Its own count of pixels a code decides which side it names.
        area = (grid * int(self.processor.downsample_ratio)) ** 2
        found = self.processor(
            text=[prompt], return_for_image_generation=True, ratio="1:1", image_area=area, return_tensors="pt"
        )
        if [int(n) for n in found["image_sizes"][0]] != [grid, grid]:
            raise ValueError(f"the processor in {self.source} names no image of {grid}x{grid} codes")
        return [int(token) for token in found["input_ids"][0]]

    def null(self, batch: int) -> Tensor:
        return self.padded([[self.tokens(self.negative, grid) for grid in self.grids]] * batch)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "patch": self.patch, "negative": self.negative}
