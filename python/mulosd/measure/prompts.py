"""Prompts to measure on: captions of held-out scenes, classes of held-out photos, or a file of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.family import PhotoSplit, class_names, scene_config
from ..data.scenes import scenes
from ..engine.conditioning import ClassConditioner
from ..engine.paths import expanded
from ..files.texts import read_lines

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.family import Family

# Draws after which a scarce held-out split is taken to be exhausted.
PATIENCE = 10_000


def made_of(family: Family) -> str | None:
    """What a family was trained on, "photos" or "scenes" of its own data; None for other images."""
    return next((kind for kind in ("photos", "scenes") if kind in family.config.facts), None)


def held_out_prompts(engine: Engine, n: int, seed: int = 0) -> list[str]:
    """Distinct captions of scenes whose combination training never saw, the same for the same seed.

    Args:
        engine: of a family that is made of scenes.
        n: how many.
        seed: of the draw.

    Raises:
        ValueError: n is below 1, the family is not made of scenes, or its held-out split has fewer than n captions.
    """
    if n < 1:
        raise ValueError(f"at least 1 prompt is needed, got {n}")
    config = scene_config(engine.family)
    if not config.held_out > 0:
        raise ValueError(f"family {engine.family.name!r} holds out no scenes; give a file of prompts")
    chosen: dict[str, None] = {}
    idle = 0
    for scene in scenes(config, seed, held_out=True):
        idle = idle + 1 if scene.caption in chosen else 0
        chosen[scene.caption] = None
        if len(chosen) == n:
            break
        if idle > PATIENCE:
            raise ValueError(f"the held-out scenes give {len(chosen)} captions, {n} were asked for")
    return list(chosen)


def held_out_classes(engine: Engine, n: int, seed: int = 0) -> list[str]:
    """Classes drawn as often as held-out photos are of them, the same for the same seed; a class may come again.

    Prompts drawn in another way (each class once, or equally often) would turn the difference in frequencies into a
    distance between images. Draws are independent, for which KID is unbiased; the first ones do not depend on `n`.

    Args:
        engine: of a family that was trained on photos.
        n: how many.
        seed: of the draw.

    Raises:
        ValueError: n is below 1, the family was not trained on photos, or holds out none.
    """
    if n < 1:
        raise ValueError(f"at least 1 prompt is needed, got {n}")
    counts = np.asarray(PhotoSplit.load(engine.family).counts)
    if not counts.any():
        raise ValueError(f"family {engine.family.name!r} holds out no photos; give a file of prompts")
    names = class_names(engine.family)
    return [names[i] for i in np.random.default_rng(seed).choice(len(counts), n, p=counts / counts.sum())]


def spaced_classes(conditioner: ClassConditioner, n: int) -> list[str]:
    """Classes, by number, at equal distances; with more prompts than classes each comes several times."""
    return [str(i * conditioner.n_classes // n) for i in range(n)]


def default_prompts(engine: Engine, n: int, seed: int = 0) -> list[str]:
    """Prompts to measure on where none are given: held-out scenes, classes as frequent as among held-out photos, or
    classes at equal distances where nothing is known of photos.

    Raises:
        ValueError: the family takes free text; its prompts have to be given.
    """
    kind = made_of(engine.family)
    if kind == "photos":
        return held_out_classes(engine, n, seed)
    conditioner = engine.family.conditioner
    if isinstance(conditioner, ClassConditioner):
        return spaced_classes(conditioner, n)
    if kind != "scenes":
        raise ValueError(
            f"family {engine.family.name!r} takes free text: give a file of prompts (--prompts-file FILE; of `mulosd "
            f"evaluate` --prompts FILE), or precomputed conditions (--features FILE) where they are taken"
        )
    return held_out_prompts(engine, n, seed)


def shown_prompts(engine: Engine, n: int, seed: int = 0) -> list[str]:
    """Prompts to look at where none are given: up to `n` different classes, or those of `default_prompts`."""
    conditioner = engine.family.conditioner
    if isinstance(conditioner, ClassConditioner):
        return spaced_classes(conditioner, min(n, conditioner.n_classes))
    return default_prompts(engine, n, seed)


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; blank lines are skipped. ValueError when there is no file or no prompt."""
    path = expanded(path)
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {path}")
    prompts = [line.strip() for line in read_lines(path) if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompts; write one a line")
    return prompts
