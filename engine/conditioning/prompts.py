"""Conditions of language models that write images: the tokens of a prompt in the model's own template."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.language import PADDING
from ..paths import expanded
from .base import Condition, Conditioner


class TemplateConditioner(Conditioner):
    """Prompts through the processor of a repository, of transformers' own class.

    Args:
        source: folder of the repository, or of its processor.
        length: most tokens of a prompt with its template.
        grids: sides in codes, ascending: a template may name the size of the image.
    """

    example = "a photo of a cat"

    def __init__(self, source: str | Path, length: int, grids: Sequence[int]) -> None:
        super().__init__()
        self.source, self.length, self.grids = str(source), length, tuple(sorted(grids))
        self._processor: Any = None

    @property
    def processor(self) -> Any:
        """The processor, loaded when it is first needed.

        Raises:
            ImportError: transformers is not installed.
            ValueError: there is none in the folder.
        """
        if self._processor is None:
            try:
                from transformers import AutoProcessor
            except ImportError as error:
                raise ImportError(
                    "prompts of this model run through transformers: pip install 'mulosd[hf]'; or give token ids "
                    "(--features FILE)"
                ) from error
            try:
                self._processor = AutoProcessor.from_pretrained(str(expanded(self.source)), local_files_only=True)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ValueError(
                    f"{self.source} holds no processor that transformers can load ({reason}): fetch the whole "
                    f"repository, or give token ids (--features FILE)"
                ) from error
        return self._processor

    @abstractmethod
    def tokens(self, prompt: str, grid: int) -> list[int]:
        """Token ids of a prompt in its template, up to the last one before the image."""

    def uncond(self, tokens: list[int]) -> list[int] | None:
        """The unconditional counterpart of a prompt's tokens, where each prompt has its own."""
        return None

    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        return self.of_tokens([[self.tokens(prompt, grid) for grid in self.grids] for prompt in prompts])

    def of_tokens(self, prompts: Sequence[Sequence[list[int]]]) -> Condition:
        """The condition of prompts: token ids of each one for each grid."""
        null = [[self.uncond(tokens) for tokens in each] for each in prompts]
        known = [[tokens for tokens in each if tokens is not None] for each in null]
        other = self.padded(known) if all(len(each) == len(self.grids) for each in known) else None
        return Condition(self.padded(prompts), null=other)

    def padded(self, prompts: Sequence[Sequence[list[int]]]) -> Tensor:
        """Ids int64 [B, length, G], moved to the right behind `PADDING`; ValueError for a prompt that is too long."""
        features = torch.full((len(prompts), self.length, len(self.grids)), PADDING, dtype=torch.int64)
        for row, each in enumerate(prompts):
            for column, tokens in enumerate(each):
                if not 1 <= len(tokens) <= self.length:
                    raise ValueError(
                        f"a prompt takes 1 to {self.length} tokens with its template, this one {len(tokens)}: shorten "
                        f"it, or load the model with a larger prompt_length"
                    )
                features[row, self.length - len(tokens) :, column] = torch.tensor(tokens)
        return features.to(self.device)

    def like(self) -> Tensor:
        return torch.full((1, self.length, len(self.grids)), PADDING)

    def precomputed(self, array: Tensor) -> Condition:
        """Token ids int64 [B, n], the same for every grid, or [B, n, G], up to the last token before the image; -1 in
        front where prompts are of different lengths."""
        count = len(self.grids)
        if array.is_floating_point() or array.dim() not in (2, 3) or (array.dim() == 3 and array.shape[2] != count):
            raise ValueError(
                f"precomputed conditions of this model are integer token ids [B, n] or [B, n, {count}], got "
                f"{array.dtype} {list(array.shape)}"
            )
        each = array[..., None].expand(-1, -1, count) if array.dim() == 2 else array
        return self.of_tokens([[[int(t) for t in column if t != PADDING] for column in row.T] for row in each.cpu()])

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "length": self.length, "grids": list(self.grids)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TemplateConditioner:
        return cls(**values)

    kind: ClassVar[str] = ""
