"""Prompts of GLM-Image: a turn of its chat template, then the sizes of the image's and the small grid."""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar

from torch import Tensor

from .prompts import TemplateConditioner


class GlmImageConditioner(TemplateConditioner):
    """GLM-Image is drawn without guidance; where it is asked for, it leads away from an empty prompt."""

    kind: ClassVar[str] = "glm-image"
    patch: ClassVar[int] = 32  # pixels a code, by which the processor counts

    def tokens(self, prompt: str, grid: int) -> list[int]:
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        side = grid * self.patch
        apply, size = self.processor.apply_chat_template, {"target_h": side, "target_w": side}
        how: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        apart = "processor_kwargs" in signature(apply).parameters  # later versions of transformers
        found = apply([messages], **how, **({"processor_kwargs": size} if apart else size))
        named = [[int(n) for n in row] for row in found["image_grid_thw"]]
        if len(named) != 2 or named[0] != [1, grid, grid]:
            raise ValueError(f"the processor in {self.source} names the grids {named}, not one of {grid}x{grid} codes")
        return [int(token) for token in found["input_ids"][0]]

    def null(self, batch: int) -> Tensor:
        return self.padded([[self.tokens("", grid) for grid in self.grids]] * batch)
