"""GenEval (Ghosh et al. 2023): object-focused prompts, judged by a detector.

Layout and prompts: README.md, generation/diffusers_generate.py and evaluation/evaluate_images.py of
https://github.com/djghosh13/geneval.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from PIL.Image import Image

from ...engine.atomic import atomic
from ...engine.paths import expanded
from ...files.texts import parse_json, read_lines
from .base import Item, Protocol, Score, first, refuse_reference, save

SOURCE = "prompts/evaluation_metadata.jsonl of https://github.com/djghosh13/geneval"
OFFICIAL = 553
KEYS = ("tag", "include", "prompt")


class GenEval(Protocol):
    """NUMBER/metadata.jsonl, the prompt's line, and NUMBER/samples/NUMBER.png, four a prompt."""

    name: ClassVar[str] = "geneval"
    images: ClassVar[int] = 4

    @classmethod
    def open(cls, prompts: Path, reference: str, limit: int | None) -> GenEval:
        prompts = expanded(prompts)
        refuse_reference(cls.name, reference)
        if not prompts.is_file():
            raise ValueError(f"--prompts {prompts}: there is no such file; get {SOURCE}")
        items = []
        for number, line in enumerate(read_lines(prompts)):
            try:
                metadata = parse_json(line, str(prompts), number + 1)
                missing = [key for key in KEYS if key not in metadata]
            except (ValueError, TypeError):
                missing = list(KEYS)
            if missing:
                raise ValueError(f"--prompts {prompts}: line {number + 1} lacks {', '.join(missing)}; get {SOURCE}")
            items.append(Item(f"{number:05d}", metadata["prompt"], metadata))
        if not items:
            raise ValueError(f"--prompts {prompts} is empty; get {SOURCE}")
        return cls(first(items, limit), OFFICIAL)

    def files(self, item: Item) -> list[Path]:
        samples = [Path(item.key, "samples", f"{n:05d}.png") for n in range(self.images)]
        return [Path(item.key, "metadata.jsonl"), *samples]

    def write(self, folder: Path, item: Item, images: Sequence[Image]) -> None:
        metadata, *samples = (folder / file for file in self.files(item))
        samples[0].parent.mkdir(parents=True, exist_ok=True)
        with atomic(metadata) as file:
            file.write(json.dumps(item.metadata).encode())
        for path, image in zip(samples, images, strict=True):
            save(path, image)

    def score(self, folder: Path, device: str) -> Score:
        return Score(
            note=f"score with GenEval's own environment (mmdetection, a GPU): python evaluation/evaluate_images.py "
            f"'{folder}' --outfile results.jsonl --model-path DETECTOR && python evaluation/summary_scores.py "
            f"results.jsonl; see https://github.com/djghosh13/geneval"
        )
