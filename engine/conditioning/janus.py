"""Prompts of Janus-Pro (arXiv 2501.17811): a turn of its chat template, then the token that begins an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from .prompts import TemplateConditioner


class JanusConditioner(TemplateConditioner):
    """The unconditional branch of a prompt has its length: every token but the first of the text and the one that
    begins the image is padding, which it sees.

    Args:
        source, length, grids: see `TemplateConditioner`.
        kept: ids that stay in the unconditional branch: begin of text, begin of image.
        pad: what the others become.
    """

    kind: ClassVar[str] = "janus"

    def __init__(
        self, source: str | Path, length: int, kept: Sequence[int], pad: int, grids: Sequence[int] = (0,)
    ) -> None:
        super().__init__(source, length, grids)
        self.kept, self.pad = tuple(kept), pad

    @classmethod
    def of(cls, folder: Path, length: int, generation: Mapping[str, Any]) -> JanusConditioner:
        """That of a repository, by its generation_config.json; ValueError names what that lacks."""
        begin = (generation.get("generation_kwargs") or {}).get("boi_token_id")
        ids = {
            "bos_token_id": generation.get("bos_token_id"),
            "generation_kwargs.boi_token_id": begin,
            "pad_token_id": generation.get("pad_token_id"),
        }
        absent = [name for name, value in ids.items() if not isinstance(value, int) or isinstance(value, bool)]
        if absent:
            raise ValueError(f"{folder / 'generation_config.json'} must say {', '.join(absent)}, as whole numbers")
        first, image, pad = ids.values()
        return cls(folder, length, (int(first or 0), int(image or 0)), int(pad or 0))

    def tokens(self, prompt: str, grid: int) -> list[int]:
        messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        found = self.processor(text=text, generation_mode="image", return_tensors="pt")["input_ids"]
        return [int(token) for token in found[0]]

    def uncond(self, tokens: list[int]) -> list[int]:
        return [token if token in self.kept else self.pad for token in tokens]

    def null(self, batch: int) -> Tensor:
        """The unconditional branch of a prompt without text."""
        return self.padded([[list(self.kept)] * len(self.grids)] * batch)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "kept": list(self.kept), "pad": self.pad}
