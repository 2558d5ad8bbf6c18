"""The data behind a family: what it was trained on, for prompts and references of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..engine.conditioning import ClassConditioner
from ..engine.family import Family
from .photos import Photos
from .scenes import SceneConfig
from .sprites import Sprites


def scene_config(family: Family) -> SceneConfig:
    """The scenes that a family was trained on; ValueError when it was trained on something else."""
    if "scenes" not in family.config.facts:
        raise ValueError(f"family {family.name!r} was not trained on scenes, so there are no scenes to compare with")
    return SceneConfig.from_dict(family.config.facts["scenes"])


def scene_words(family: Family) -> tuple[list[str], list[str]]:
    """Objects and backgrounds of a family of scenes; nothing for others."""
    scenes = family.config.facts.get("scenes", {})
    return list(scenes.get("objects", {})), list(scenes.get("backgrounds", {}))


def sprites(family: Family) -> Sprites:
    """The sprite sheet of a family of scenes; ValueError when its folder has none."""
    if family.path is None or not (family.path / "sprites.png").is_file():
        raise ValueError(f"family {family.name!r} has no sprites.png beside its family.json")
    return Sprites.load(family.path / "sprites.png")


def class_names(family: Family) -> list[str]:
    """What to call each class of a family: its first name, or its number; ValueError for one without classes."""
    conditioner = family.conditioner
    if not isinstance(conditioner, ClassConditioner):
        raise ValueError(f"family {family.name!r} is not conditioned on classes but on {conditioner.kind}")
    return [conditioner.name(str(i)) for i in range(conditioner.n_classes)]


@dataclass(frozen=True)
class PhotoSplit:
    """What family.json says under `photos` of the archive that a family was trained on, which it does not hold.

    Attributes:
        digest: of the archive, `Photos.digest` in hex.
        held_out: share of the photos that no stage trained on.
        size: side in px at which the family draws them.
        counts: held-out photos of each class.
    """

    digest: str
    held_out: float
    size: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, photos: Photos, share: float, size: int) -> PhotoSplit:
        counts = [0] * len(photos.names)
        for i in photos.split(True, share):
            counts[photos.classes[i]] += 1
        return cls(photos.digest().hex(), share, size, tuple(counts))

    @classmethod
    def load(cls, family: Family) -> PhotoSplit:
        """That of a family; ValueError when it was not trained on photos, or has other classes."""
        found = family.config.facts.get("photos")
        if found is None:
            raise ValueError(
                f"family {family.name!r} does not say which photos it was trained on: its family.json has no key "
                f"'photos', which `mulosd train export` writes"
            )
        split = cls(found["digest"], found["held_out"], found["size"], tuple(found["counts"]))
        if len(class_names(family)) != len(split.counts):
            raise ValueError(f"family {family.name!r} counts photos of {len(split.counts)} classes, and has others")
        return split

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "counts": list(self.counts)}
