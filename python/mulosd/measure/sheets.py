"""Contact sheets: images with their captions on one page; so many of each prompt, none picked."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ..engine.atomic import atomic
from ..engine.conditioning import ClassConditioner

if TYPE_CHECKING:
    from ..engine.decoding.base import Decoder
    from ..engine.engine import Engine

MARGIN = 6
LINE = 13
CHUNK = 16


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], path: Path, columns: int = 8, size: int = 128
) -> None:
    """Write images in rows, each with its caption wrapped beneath it.

    Args:
        images: images of any size, shown in a square of `size` px.
        captions: one an image.
        path: file to write; its suffix chooses the format.
        columns: images a row.
        size: side of an image in px.

    Raises:
        ValueError: no images, another number of captions, or columns or size below 1.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a sheet needs as many captions as images, got {len(images)} and {len(captions)}")
    if columns < 1 or size < 1:
        raise ValueError(f"columns and size must be at least 1, got {columns} and {size}")
    font = ImageFont.load_default()
    characters = max(1, int(size / font.getlength("n")))
    wrapped = [textwrap.wrap(caption, characters) for caption in captions]
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    heights = [size + LINE * max(len(wrapped[i]) for i in row) + 2 * MARGIN for row in rows]
    width = min(columns, len(images)) * (size + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (size + MARGIN)
            sheet.paste(images[i].convert("RGB").resize((size, size), Image.Resampling.LANCZOS), (left, top))
            for n, line in enumerate(wrapped[i]):
                draw.text((left, top + size + 2 + n * LINE), line, fill="black", font=font)
        top += height
    with atomic(path) as file:
        sheet.save(file, format=Image.registered_extensions().get(path.suffix.lower(), "PNG"))


def drawn(
    engine: Engine,
    asked: Sequence[tuple[str, int]],
    decoder: Decoder | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """The images of (prompt, seed) pairs; `progress` is called with images done and in all."""
    images: list[Image.Image] = []
    for start in range(0, len(asked), CHUNK):
        prompts, seeds = zip(*asked[start : start + CHUNK], strict=True)
        images += engine.generate(list(prompts), decoder=decoder, seed=list(seeds)).images
        if progress is not None:
            progress(len(images), len(asked))
    return images


def sheet(
    engine: Engine,
    prompts: Sequence[str],
    path: Path,
    *,
    each: int = 4,
    decoder: Decoder | None = None,
    seed: int = 0,
    columns: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw `each` images of every prompt, the i-th with seed `seed` + i, and write them on one page with captions.

    Args:
        engine: of the family.
        prompts: classes (by name or number) or captions.
        path: file to write; its suffix chooses the format.
        each: images a prompt.
        decoder: None is the family's calibrated default.
        seed: of the first image of each prompt.
        columns: images a row.
        progress: see `drawn`.

    Raises:
        ValueError: no prompts, `each` below 1, or what `Engine.generate` raises.
    """
    if not prompts or each < 1:
        raise ValueError(f"a sheet needs a prompt and at least 1 image of each, got {len(prompts)} and {each}")
    conditioner = engine.family.conditioner
    asked = [(prompt, seed + i) for prompt in prompts for i in range(each)]
    images = drawn(engine, asked, decoder, progress)
    captions = [conditioner.name(p) if isinstance(conditioner, ClassConditioner) else p for p, _ in asked]
    contact_sheet(images, captions, path, columns=columns, size=max(engine.family.image_sizes))
