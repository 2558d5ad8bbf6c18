"""Contact sheets of what a family draws: so many pictures of each prompt, none picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.conditioning import ClassConditioner
from .plots import contact_sheet

if TYPE_CHECKING:
    from ..engine.decoding.base import Decoder
    from ..engine.engine import Engine

CHUNK = 16


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
    """Draw `each` pictures of every prompt, the i-th with seed `seed` + i, and write them on one page with captions.

    Args:
        engine: of the family.
        prompts: classes (by name or number) or captions.
        path: file to write; its suffix chooses the format.
        each: pictures a prompt.
        decoder: None is the family's calibrated default.
        seed: of the first picture of each prompt.
        columns: pictures a row.
        progress: called with pictures done and in all.

    Raises:
        ValueError: no prompts, `each` below 1, or what `Engine.generate` raises.
    """
    if not prompts or each < 1:
        raise ValueError(f"a sheet needs a prompt and at least 1 picture of each, got {len(prompts)} and {each}")
    conditioner = engine.family.conditioner
    asked = [(prompt, seed + i) for prompt in prompts for i in range(each)]
    images = []
    for start in range(0, len(asked), CHUNK):
        part = asked[start : start + CHUNK]
        images += engine.generate([p for p, _ in part], decoder=decoder, seed=[s for _, s in part]).images
        if progress is not None:
            progress(len(images), len(asked))
    captions = [conditioner.name(p) if isinstance(conditioner, ClassConditioner) else p for p, _ in asked]
    contact_sheet(images, captions, path, columns=columns, size=max(engine.family.image_sizes))
