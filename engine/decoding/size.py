"""Images of a given size: which decoder can draw them, and how it is told."""

from __future__ import annotations

from ..family import Family
from .base import Decoder, OneGrid
from .spec import DECODERS, decoder_class

# What draws the smaller sizes where no decoder is asked for: the tokens of serial decoding, sooner.
SMALLER = "jacobi"


def able(decoder: Decoder, size: int | None, family: Family) -> Decoder:
    """What draws a size (px; None is any) where `decoder` was not asked for: itself, or `SMALLER` if it cannot."""
    if size in (None, family.image_sizes[-1]) or isinstance(decoder, OneGrid):
        return decoder
    return decoder_class(SMALLER)()


def sized(decoder: Decoder, size: int, family: Family, prefix: str = "") -> Decoder:
    """A decoder that draws images of a size.

    Args:
        decoder: the settings.
        size: side in px.
        family: whose sizes.
        prefix: of the names `size` and `decoder` in messages, such as "--".

    Raises:
        ValueError: the family has no such grid, or the decoder cannot draw it; the message says what can.
    """
    sizes = family.image_sizes
    if size not in sizes:
        raise ValueError(f"{prefix}size {size}: family {family.name!r} draws {', '.join(map(str, sizes))} px")
    grid = size // family.patch
    if isinstance(decoder, OneGrid):
        if decoder.grid not in (None, grid):
            raise ValueError(
                f"{prefix}size {size} is grid={grid}, but the decoder has grid={decoder.grid}; give one of them"
            )
        return decoder.changed(grid=grid)
    if size != sizes[-1]:
        able = [n for n, kind in DECODERS.items() if issubclass(kind, OneGrid) and (n != "eagle" or family.eagle)]
        raise ValueError(
            f"{prefix}size {size}: decoder {decoder.name!r} draws {sizes[-1]} px alone, the largest size; for {size} "
            f"px take {prefix}decoder {' or '.join(able)}"
        )
    return decoder
