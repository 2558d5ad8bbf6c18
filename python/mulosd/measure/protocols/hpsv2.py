"""HPSv2 (Wu et al. 2023): human preference, predicted by a fine-tuned CLIP, for four styles of prompts.

Layout and prompts: README.md and hpsv2/evaluation.py of https://github.com/tgxs002/HPSv2. The scorer takes every entry
of the folder for a style, so that nothing else may lie there.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from PIL.Image import Image

from ...engine.paths import expanded
from ...files.texts import read_json
from .base import Item, Protocol, Score, first, installed, refuse_reference, save

STYLES = ("anime", "concept-art", "paintings", "photo")
SOURCE = (
    "anime.json, concept-art.json, paintings.json and photo.json from the folder benchmark of "
    "https://huggingface.co/datasets/zhwang/HPDv2, which hpsv2.benchmark_prompts('all') fetches to "
    "~/.cache/hpsv2/datasets/benchmark"
)
OFFICIAL = 3200
VERSION = "v2.1"  # the default of the package


class HPSv2(Protocol):
    """STYLE/NUMBER.jpg; `limit` counts the prompts of each style."""

    name: ClassVar[str] = "hpsv2"

    @classmethod
    def open(cls, prompts: Path, reference: str, limit: int | None) -> HPSv2:
        prompts = expanded(prompts)
        refuse_reference(cls.name, reference)
        items: list[Item] = []
        for style in STYLES:
            file = prompts / f"{style}.json"
            if not file.is_file():
                raise ValueError(f"--prompts {prompts}: there is no {style}.json; get {SOURCE}")
            try:
                found = read_json(file)
            except ValueError:
                found = None
            if not isinstance(found, list) or not found or not all(isinstance(p, str) and p.strip() for p in found):
                raise ValueError(f"--prompts {file} is no list of prompts; get {SOURCE}")
            items += first([Item(f"{style}/{n:05d}", prompt) for n, prompt in enumerate(found)], limit)
        return cls(items, OFFICIAL)

    def files(self, item: Item) -> list[Path]:
        return [Path(f"{item.key}.jpg")]

    def write(self, folder: Path, item: Item, images: Sequence[Image]) -> None:
        [file], [image] = self.files(item), images
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        # Pillow's own quality, as in the example of the README: it is part of what published figures were scored on.
        save(folder / file, image)

    def score(self, folder: Path, device: str) -> Score:
        scorer = installed("hpsv2")
        if scorer is None:
            return Score(
                note=f"hpsv2 cannot be imported: pip install hpsv2, then call this again, or "
                f"hpsv2.evaluate('{folder}', hps_version='{VERSION}')"
            )
        printed = io.StringIO()
        # It prints its figures and returns none.
        with contextlib.redirect_stdout(printed):
            scorer.evaluate(str(folder), hps_version=VERSION)
        names = "|".join([*STYLES, "Average"])
        found = re.findall(rf"^\S+ ({names})\s+(\d+\.\d+)", printed.getvalue(), re.M)
        if not found:
            raise RuntimeError(f"hpsv2.evaluate printed no scores:\n{printed.getvalue()}")
        return Score({name: float(value) for name, value in found}, f"HPS {VERSION}")
