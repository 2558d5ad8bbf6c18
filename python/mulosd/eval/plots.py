"""A contact sheet: many pictures with their captions on one page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
LINE = 13


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], path: Path, columns: int = 8, size: int = 128
) -> None:
    """Write pictures in rows, each with its caption wrapped beneath it.

    Args:
        images: pictures of any size, shown in a square of `size` px.
        captions: one a picture.
        path: file to write; its suffix chooses the format.
        columns: pictures a row.
        size: side of a picture in px.

    Raises:
        ValueError: no pictures, another number of captions, or columns or size below 1.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a sheet needs as many captions as pictures, got {len(images)} and {len(captions)}")
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
    sheet.save(path)
