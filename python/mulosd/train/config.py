"""Training configuration: one YAML file a family, checked as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.photos import Photos
from ..data.scenes import COUNTS, RELATIONS, Renderer, SceneConfig
from ..data.sprites import Sprites
from ..engine.models.text import SPECIALS, Vocabulary
from .loop import LoopConfig
from .photos import Augmentation, PhotoSource
from .sources import FolderSource, ImageSource, SceneSource

KINDS = ("scenes", "folder", "photos")
IGNORED = ("a", "an", "the", "and", "on", "of", "to", "with", "background", "is")
RELATION_SYNONYMS = {"left of": ("left",), "right of": ("right",), "above": ("over",), "below": ("under", "beneath")}


class FamilyConfig:
    """A training file: `family`, `seed`, `data`, and a section for each command."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path
        for key in ("family", "data"):
            if key not in values:
                raise ValueError(f"{path} lacks the section {key!r}; it has {list(values)}")
        self.name: str = values["family"]
        self.seed: int = int(values.get("seed", 0))
        self.data: dict[str, Any] = values["data"]
        if self.data.get("kind") not in KINDS:
            raise ValueError(f"{path}: data.kind must be one of {', '.join(KINDS)}, got {self.data.get('kind')!r}")
        self._photos: Photos | None = None

    @classmethod
    def load(cls, path: Path) -> FamilyConfig:
        try:
            import yaml
        except ImportError as error:
            raise ImportError("training files are YAML: pip install 'mulosd[train]'") from error
        if not path.is_file():
            raise ValueError(f"there is no training file {path}; configs/emoji.yaml is an example")
        values = yaml.safe_load(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a mapping at its top level")
        return cls(values, path)

    def section(self, name: str) -> dict[str, Any]:
        """A section as a dictionary; ValueError when the file lacks it."""
        if name not in self.values:
            raise ValueError(f"{self.path} has no section {name!r}; it has {list(self.values)}")
        return dict(self.values[name])

    def resolve(self, path: str) -> Path:
        """A path of the file, relative to the file's own folder."""
        return (self.path.parent / path).resolve()

    def loop(self, section: str) -> LoopConfig:
        return LoopConfig(**self.section(section).get("loop", {}))

    def scenes(self) -> SceneConfig:
        """The scene configuration of data.kind 'scenes'."""
        d = self.data
        return SceneConfig.from_dict(
            {
                "objects": {name: spec[1] for name, spec in d["objects"].items()},
                "backgrounds": d["backgrounds"],
                **{k: d[k] for k in ("cells", "sprite_cells", "mix", "held_out", "jitter") if k in d},
            }
        )

    def vocabulary(self) -> Vocabulary:
        """Phrases of scenes (objects, colours, relations, counts, synonyms), or the words of a folder's captions."""
        at = len(SPECIALS)
        phrases: dict[str, int] = {}

        def add(*words: str) -> None:
            nonlocal at
            phrases.update(dict.fromkeys(words, at))
            at += 1

        if self.data["kind"] == "folder":
            folder = self.resolve(self.data["path"])
            captions = (FolderSource.caption(p) for p in FolderSource(folder).paths)
            words = sorted({w for c in captions for w in c.lower().split()} - set(IGNORED))
            for word in words:
                add(word)
            return Vocabulary(phrases, frozenset(IGNORED))
        for name, (_, *others) in self.data["objects"].items():
            add(name, *others)
        for colour in self.data["backgrounds"]:
            add(colour)
        for relation in RELATIONS:
            # "of" is dropped before matching, so the phrase is matched without it.
            add(relation.removesuffix(" of"), *RELATION_SYNONYMS[relation])
        for word in COUNTS.values():
            add(word)
        return Vocabulary(phrases, frozenset(IGNORED))

    def photos(self) -> Photos:
        """The archive of data.kind 'photos', read once."""
        if self._photos is None:
            self._photos = Photos.load(self.resolve(self.data["path"]), self.data.get("names"))
        return self._photos

    def source(self, held_out: bool = False) -> ImageSource:
        """Images and captions of one split."""
        if self.data["kind"] == "folder":
            return FolderSource(self.resolve(self.data["path"]), held_out)
        if self.data["kind"] == "photos":
            augmentation = Augmentation.from_dict(self.data.get("augment", {}))
            return PhotoSource(self.photos(), held_out, self.data.get("held_out", 0.1), augmentation)
        return SceneSource(Renderer(self.scenes(), Sprites.load(self.resolve(self.data["sprites"]))), held_out)
