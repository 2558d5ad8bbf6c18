"""The scenes behind a family: what it was trained on, for prompts and references of an evaluation."""

from __future__ import annotations

from ..engine.family import Family
from .scenes import SceneConfig
from .sprites import Sprites


def scene_config(family: Family) -> SceneConfig:
    """The scenes that a family was trained on; ValueError when it was trained on something else."""
    if "scenes" not in family.metadata:
        raise ValueError(f"family {family.name!r} was not trained on scenes, so there are no scenes to compare with")
    return SceneConfig.from_dict(family.metadata["scenes"])


def sprites(family: Family) -> Sprites:
    """The sprite sheet of a family of scenes; ValueError when its folder has none."""
    if family.path is None or not (family.path / "sprites.png").is_file():
        raise ValueError(f"family {family.name!r} has no sprites.png beside its family.json")
    return Sprites.load(family.path / "sprites.png")
