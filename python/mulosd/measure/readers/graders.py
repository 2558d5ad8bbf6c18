"""Who says whether an image shows what its prompt asks for: a network that the judged models never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ...data.family import scene_config
from ..images import ImageSet
from ..metrics.accuracy import PromptParser, Score, score
from ..readers.classes import FILE as CLASSIFIER
from ..readers.classes import ClassReader
from ..readers.lite0 import lite0_packages
from ..readers.objects import FILE as READER
from ..readers.objects import Reader, read_background

if TYPE_CHECKING:
    from ...engine.family import Family


class Grader(Protocol):
    """Scores images against prompts.

    Attributes:
        what: what it counts, such as "objects". A class is an object that is asked for once.
        scenes: whether it also looks at relations and backgrounds.
    """

    what: str
    scenes: bool

    def grade(self, prompts: Sequence[str], images: ImageSet) -> list[Score]:
        """One score an image; ValueError when what it looks at, images or features, is missing."""


class SceneGrader:
    """Objects, relations and backgrounds of scenes.

    Args:
        family: of scenes, loaded from a folder with a reader.

    Raises:
        ValueError: there is no reader, or the family is not made of scenes.
    """

    what, scenes = "objects", True

    def __init__(self, family: Family) -> None:
        self.config = scene_config(family)
        if family.path is None:
            raise ValueError(f"family {family.name!r} was not loaded from a folder")
        self.reader = Reader.load(family.path / READER, tuple(self.config.objects))
        self.parser = PromptParser(family.vocabulary, self.config)

    def grade(self, prompts: Sequence[str], images: ImageSet) -> list[Score]:
        shown = images.shown
        seen, backgrounds = self.reader.read(shown), read_background(shown, self.config.backgrounds)
        asked = [self.parser.parse(prompt) for prompt in prompts]
        return [score(a, r, b) for a, r, b in zip(asked, seen, backgrounds, strict=True)]


class ClassGrader:
    """Classes, each an object that is asked for once.

    Args:
        reader: of classes.
    """

    what, scenes = "classes", False

    def __init__(self, reader: ClassReader) -> None:
        self.reader = reader

    def grade(self, prompts: Sequence[str], images: ImageSet) -> list[Score]:
        if images.features is None:
            raise ValueError("classes are read off features, and there are images alone")
        right = self.reader.ids(list(prompts)) == self.reader.read(images.features)
        return [Score(1, int(r), 0, relations=True, background=True) for r in right]


def class_grader(family: Family) -> Grader:
    """The grader of a family of classes, which has been loaded from a folder; ImportError without Lite0 to read."""
    if family.path is None:
        raise ValueError(f"family {family.name!r} was not loaded from a folder")
    lite0_packages()
    return ClassGrader(ClassReader.load(family.path / CLASSIFIER))


# By the file beside family.json that the grader reads.
GRADERS: dict[str, Callable[[Family], Grader]] = {READER: SceneGrader, CLASSIFIER: class_grader}


def grader_of(family: Family) -> Grader:
    """The grader of a family; ValueError when it has none, ImportError when its network is not installed."""
    for file, made in GRADERS.items():
        if family.path is not None and (family.path / file).is_file():
            return made(family)
    # It says what is missing.
    return SceneGrader(family)
