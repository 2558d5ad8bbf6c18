"""Who says whether a picture shows what its prompt asks for: a network that the judged models never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.family import scene_config
from .accuracy import PromptParser, Score, score
from .classes import FILE as CLASSIFIER
from .classes import ClassReader
from .kid import lite0_packages
from .pictures import PictureSet
from .reader import FILE as READER
from .reader import Reader, read_background

if TYPE_CHECKING:
    from ..engine.family import Family


class Grader(Protocol):
    """Scores pictures against prompts.

    Attributes:
        what: what it counts, such as "objects". A class is an object that is asked for once.
    """

    what: str

    def grade(self, prompts: Sequence[str], pictures: PictureSet) -> list[Score]:
        """One score a picture; ValueError when what it looks at, images or features, is missing."""


class SceneGrader:
    """Objects, relations and backgrounds of scenes.

    Args:
        family: of scenes, loaded from a folder with a reader.

    Raises:
        ValueError: there is no reader, or the family is not made of scenes.
    """

    what = "objects"

    def __init__(self, family: Family) -> None:
        self.scenes = scene_config(family)
        if family.path is None:
            raise ValueError(f"family {family.name!r} was not loaded from a folder")
        self.reader = Reader.load(family.path / READER, tuple(self.scenes.objects))
        self.parser = PromptParser(family.vocabulary, self.scenes)

    def grade(self, prompts: Sequence[str], pictures: PictureSet) -> list[Score]:
        images = pictures.shown
        seen, backgrounds = self.reader.read(images), read_background(images, self.scenes.backgrounds)
        asked = [self.parser.parse(prompt) for prompt in prompts]
        return [score(a, r, b) for a, r, b in zip(asked, seen, backgrounds, strict=True)]


class Classifier(Protocol):
    """Names the class of pictures by their features."""

    def read(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """Class ids [B] of pictures with features [B, d]."""

    def ids(self, classes: Sequence[str | int]) -> NDArray[np.int64]:
        """Class ids [B] of prompts; ValueError for one that is no class."""


class ClassGrader:
    """Classes, each an object that is asked for once.

    Args:
        classifier: a network that the judged family never saw.
    """

    what = "classes"

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def grade(self, prompts: Sequence[str], pictures: PictureSet) -> list[Score]:
        if pictures.features is None:
            raise ValueError("classes are read off features, and there are pictures alone")
        right = self.classifier.ids(list(prompts)) == self.classifier.read(pictures.features)
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
