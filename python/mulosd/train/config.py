"""Training configuration: one YAML file a family, checked as it is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from ..data.family import scene_config, sprites
from ..data.photos import Photos
from ..data.scenes import COUNTS, RELATIONS, Renderer, SceneConfig
from ..data.sprites import Sprites
from ..engine.arguments import read
from ..engine.conditioning import ClassConditioner, ObjectLimit, PhraseConditioner
from ..engine.family import Family
from ..engine.family_config import check_keys, mapping, told
from ..engine.models.text import SPECIALS, TextEncoder, TextEncoderConfig, Vocabulary
from ..engine.paths import expanded
from ..engine.sampling import SamplingParams
from ..files.texts import read_text
from .loop import LoopConfig
from .sources import Augmentation, FolderSource, ImageSource, PhotoSource, SceneSource, check_folder

KINDS = ("scenes", "folder", "photos")
IGNORED = ("a", "an", "the", "and", "on", "of", "to", "with", "background", "is")
T = TypeVar("T")
# Of a training file: bytes, levels and entries. Lists of objects and their icons are the longest that there are.
LARGEST, DEPTH, ENTRIES = 4 << 20, 32, 200_000
SCALARS = ("bool", "float", "int", "str")
RELATION_SYNONYMS = {"left of": ("left",), "right of": ("right",), "above": ("over",), "below": ("under", "beneath")}


class TrainingFile:
    """A training file: `family`, `seed`, `data`, and a section for each command."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path
        for key in ("family", "data"):
            if key not in values:
                raise ValueError(f"{path} lacks the section {key!r}; it has {list(values)}")
        self.name: str = values["family"]
        if not isinstance(self.name, str) or not self.name or not self.name.isprintable():
            raise ValueError(f"{path}: family must be its name, a text of printable characters, got {self.name!r}")
        self.seed: int = int(str(read(f"{path}: seed", values.get("seed", 0), "int")))
        self.data: dict[str, Any] = dict(mapping(values["data"], f"{path}: data"))
        self.sampling = self.build("sampling", lambda given: SamplingParams(**given), self.values.get("sampling"))
        if self.data.get("kind") not in KINDS:
            raise ValueError(f"{path}: data.kind must be one of {', '.join(KINDS)}, got {self.data.get('kind')!r}")
        self._photos: Photos | None = None

    @classmethod
    def load(cls, path: Path) -> TrainingFile:
        try:
            import yaml
        except ImportError as error:
            raise ImportError("training files are YAML: pip install 'mulosd[train]'") from error
        path = expanded(path)
        if not path.exists():
            raise ValueError(f"there is no training file {path}; configs/emoji.yaml is an example")
        text = read_text(path, LARGEST)
        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is no YAML that can be read: {' '.join(str(error).split())[:300]}") from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ValueError(f"{path} must hold a mapping at its top level; configs/emoji.yaml is an example")
        check_plain(values, path)
        return cls(values, path)

    def section(self, name: str) -> dict[str, Any]:
        """A section as a dictionary; ValueError when the file lacks it."""
        if name not in self.values:
            raise ValueError(f"{self.path} has no section {name!r}; it has {list(self.values)}")
        return dict(mapping(self.values[name] or {}, f"{self.path}: {name}"))

    def options(self, name: str, task: Callable[..., Any], *apart: str) -> dict[str, Any]:
        """What a section states of the arguments of its task.

        Args:
            name: of the section.
            task: whose arguments that have names alone may be stated.
            apart: what the section may state besides, next to its loop.

        Raises:
            ValueError: the section states something else, or a value of another type.
        """
        known = keywords(task)
        section = self.section(name)
        check_keys(section, ("loop", *apart, *known), (), f"{self.path}: {name}")
        return typed({k: v for k, v in section.items() if k in known}, known, f"{self.path}: {name}")

    def build(self, where: str, make: Callable[[dict[str, Any]], T], values: Any) -> T:
        """Something made of a mapping of the file, such as sizes of a network; ValueError names what is wrong."""
        given = dict(mapping(values or {}, f"{self.path}: {where}"))
        with told(self.path, where):
            return make(given)

    def resolve(self, path: str) -> Path:
        """A path of the file, relative to the file's own folder."""
        return (self.path.parent / expanded(path)).resolve()

    def loop(self, section: str, steps: int | None = None) -> LoopConfig:
        """The loop of a section; `steps` overrides its number of steps, and shortens the decay to fit."""
        kinds = {f.name: str(f.type) for f in fields(LoopConfig)}
        where = f"{self.path}: {section}.loop"
        stated = typed(mapping(self.section(section).get("loop") or {}, where), kinds, where)
        loop = self.build(f"{section}.loop", lambda given: LoopConfig(**given), stated)
        return loop if steps is None else replace(loop, steps=steps, decay=min(loop.decay, steps))

    def scenes(self) -> SceneConfig:
        """The scene configuration of data.kind 'scenes'; ValueError for other data."""
        d = self.data
        if d["kind"] != "scenes":
            raise ValueError(f"{self.path}: this needs data.kind 'scenes', got {d['kind']!r}")
        return SceneConfig.from_dict(
            {
                "objects": {name: spec[1] for name, spec in d["objects"].items()},
                "backgrounds": d["backgrounds"],
                **{k: d[k] for k in ("cells", "sprite_cells", "mix", "held_out", "jitter", "free_single") if k in d},
            }
        )

    def class_names(self) -> list[str]:
        """Classes of a family that is conditioned on classes: those of the archive, or a folder's distinct captions.

        Raises:
            ValueError: the family is made of scenes.
        """
        if self.data["kind"] == "photos":
            return list(self.photos().names)
        if self.data["kind"] == "folder":
            folder = self.resolve(self.data["path"])
            return sorted({FolderSource.caption(p) for p in FolderSource(folder, share=0.0).paths})
        raise ValueError(
            f"{self.path}: ar.classes needs data.kind 'photos' or 'folder'; scenes have captions (ar.text)"
        )

    def conditioner(self) -> ClassConditioner | PhraseConditioner:
        """What turns captions into conditions, untrained: of the section `ar`, `text` or `classes`.

        Raises:
            ValueError: neither or both are there, or the data do not go with it.
        """
        section = self.section("ar")
        if ("text" in section) == ("classes" in section):
            raise ValueError(f"{self.path}: the section ar needs either text (captions) or classes (class names)")
        if "classes" in section:
            names = self.class_names()
            return ClassConditioner(len(names), names)
        if self.data["kind"] == "photos":
            raise ValueError(f"{self.path}: photos have classes and no captions; give ar.classes instead of ar.text")
        vocabulary = self.vocabulary()
        sizes = self.build(
            "ar.text", lambda given: TextEncoderConfig(**given, vocab_size=vocabulary.size), section["text"]
        )
        return PhraseConditioner(vocabulary, TextEncoder(sizes), self.object_limit())

    def object_limit(self) -> ObjectLimit | None:
        """The most objects that scenes hold; None for other images."""
        if self.data["kind"] != "scenes":
            return None
        scenes = self.scenes()
        return ObjectLimit(scenes.most_objects, tuple(scenes.objects), {word: n for n, word in COUNTS.items()})

    def phrases(self, stage: str) -> PhraseConditioner:
        """The conditioner of a stage that trains or needs a text encoder; ValueError for a family without one."""
        conditioner = self.conditioner()
        if not isinstance(conditioner, PhraseConditioner):
            raise ValueError(
                f"{self.path}: the family is conditioned on classes and has no text encoder: there is no stage {stage}"
            )
        return conditioner

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

    def initial_family(self) -> Family | None:
        """The family named by `init`, whose models training starts from."""
        return Family.load(self.resolve(self.values["init"])) if "init" in self.values else None

    @property
    def held_out_share(self) -> float:
        """Share of the photos that no stage trains on."""
        return float(self.data.get("held_out", 0.1))

    def photos(self) -> Photos:
        """The archive of data.kind 'photos', read once; ValueError for other data."""
        if self.data["kind"] != "photos":
            raise ValueError(f"{self.path}: this needs data.kind 'photos', got {self.data['kind']!r}")
        if self._photos is None:
            self._photos = Photos.load(self.resolve(self.data["path"]), self.data.get("names"))
        return self._photos

    def source(
        self, held_out: bool = False, captions: bool = True, relations: Mapping[str, float] | None = None
    ) -> ImageSource:
        """Images and captions of one split.

        Args:
            held_out: the held-out split instead of the one that is trained on.
            captions: False leaves the captions of a folder unread.
            relations: of composed scenes, how often each relation stands among pairs, any scale; None is equally often.

        Raises:
            ValueError: the data are not what the file says, or have no relations.
        """
        if relations is not None and self.data["kind"] != "scenes":
            raise ValueError(f"{self.path}: ar.relations needs data.kind 'scenes', got {self.data['kind']!r}")
        if self.data["kind"] == "folder":
            return FolderSource(self.resolve(self.data["path"]), held_out, captions=captions)
        if self.data["kind"] == "photos":
            augmentation = self.build("data.augment", lambda given: Augmentation(**given), self.data.get("augment"))
            return PhotoSource(self.photos(), held_out, self.held_out_share, augmentation)
        scenes = self.scenes()
        if relations is not None:
            where = f"{self.path}: ar.relations"
            shares = typed(mapping(relations, where), dict.fromkeys(RELATIONS, "float"), where)
            in_order = tuple(shares.get(name, 0.0) for name in RELATIONS)
            with told(self.path, "ar.relations"):
                scenes = replace(scenes, relations=in_order)
        return SceneSource(Renderer(scenes, Sprites.load(self.resolve(self.data["sprites"]))), held_out)

    def validation_source(self, stage: str, captions: bool = True) -> ImageSource | None:
        """Held-out images for a stage whose loop validates."""
        return self.source(True, captions) if self.loop(stage).validate_every else None


def check_plain(values: Any, path: Path) -> None:
    """ValueError for values nested deep, or with more entries than a training file needs.

    Anchors of YAML let a few lines mean a billion entries, or a list that holds itself.
    """
    level, total = [values], 0
    for _ in range(DEPTH):
        nodes = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list))]
        total += sum(map(len, nodes))
        if total > ENTRIES:
            raise ValueError(f"{path} has more than {ENTRIES:,} entries, anchors written out; make it shorter")
        level = [child for node in nodes for child in node]
        if not level:
            return
    raise ValueError(f"{path} is nested more than {DEPTH} deep")


def keywords(task: Callable[..., Any]) -> dict[str, str]:
    """Types, as they are written, of the arguments of a function or class that have names alone."""
    return {p.name: str(p.annotation) for p in inspect.signature(task).parameters.values() if p.kind is p.KEYWORD_ONLY}


def typed(values: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> dict[str, Any]:
    """Values by name, numbers and truth values as what they should be; ValueError names the one that is not."""
    check_keys(values, kinds, (), where)
    return {k: read(f"{where}.{k}", v, kinds[k]) if kinds[k] in SCALARS else v for k, v in values.items()}


def images_of(
    family: Family, images: Path | None = None, held_out: bool = False, config: Path | None = None
) -> ImageSource | None:
    """Real captioned images for a family.

    Args:
        family: whose scenes are taken where neither of the following is given.
        images: a folder of captioned images.
        held_out: the split that training never saw, instead of the one that it did.
        config: the training file (YAML) whose data they are.

    Returns:
        None where there are none.

    Raises:
        ValueError: both a folder and a training file, or no such images.
    """
    if images is not None and config is not None:
        raise ValueError("--images and --config both name images: give one of them")
    if config is not None:
        return TrainingFile.load(config).source(held_out)
    if images is not None:
        captions = not isinstance(family.conditioner, ClassConditioner)
        check_folder(expanded(images), family.image_sizes[-1], captions)
        return FolderSource(images, held_out, captions=captions)
    if "scenes" not in family.config.facts:
        return None
    return SceneSource(Renderer(scene_config(family), sprites(family)), held_out)
