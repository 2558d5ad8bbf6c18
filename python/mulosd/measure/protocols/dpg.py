"""DPG-Bench (Hu et al. 2024): long prompts, judged by questions to a visual language model.

Layout and prompts: README.md and dpg_bench/ of https://github.com/TencentQQGYLab/ELLA. The scorer takes every file of
the folder for an image, so that nothing else may lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from PIL import Image

from ...engine.paths import expanded
from ...files.texts import read_text
from .base import Item, Protocol, Score, first, refuse_reference, save

SOURCE = "the folder dpg_bench/prompts of https://github.com/TencentQQGYLab/ELLA"
OFFICIAL = 1065


class DPG(Protocol):
    """STEM.png for the prompt STEM.txt: four images, two by two."""

    name: ClassVar[str] = "dpg"
    images: ClassVar[int] = 4

    @classmethod
    def open(cls, prompts: Path, reference: str, limit: int | None) -> DPG:
        prompts = expanded(prompts)
        refuse_reference(cls.name, reference)
        files = sorted(prompts.glob("*.txt")) if prompts.is_dir() else []
        if not files:
            raise ValueError(f"--prompts {prompts}: there is no folder of .txt prompts; get {SOURCE}")
        items = [Item(file.stem, read_text(file).strip()) for file in files]
        empty = [item.key for item in items if not item.prompt]
        if empty:
            raise ValueError(f"--prompts {prompts}: {empty[0]}.txt is empty; get {SOURCE}")
        return cls(first(items, limit), OFFICIAL)

    def files(self, item: Item) -> list[Path]:
        return [Path(f"{item.key}.png")]

    def write(self, folder: Path, item: Item, images: Sequence[Image.Image]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        width, height = images[0].size
        sheet = Image.new("RGB", (2 * width, 2 * height))
        for n, image in enumerate(images):
            sheet.paste(image.convert("RGB"), (n % 2 * width, n // 2 * height))
        [file] = self.files(item)
        save(folder / file, sheet)

    def score(self, folder: Path, device: str) -> Score:
        with Image.open(folder / self.files(self.items[0])[0]) as sheet:
            side = sheet.width // 2
        return Score(
            note=f"score with DPG-Bench's own environment (modelscope, accelerate): bash dpg_bench/dist_eval.sh "
            f"'{folder}' {side}; see https://github.com/TencentQQGYLab/ELLA"
        )
