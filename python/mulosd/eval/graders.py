"""Who says whether a picture shows what its prompt asks for: a network that the judged models never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.family import scene_config
from ..engine.conditioning import ClassConditioner
from .accuracy import PromptParser, Score, score
from .reader import Reader, read_background

if TYPE_CHECKING:
    from ..engine.family import Family


class Grader(Protocol):
    """Scores pictures against prompts.

    Attributes:
        what: what it counts, such as "objects". A class is an object that is asked for once.
    """

    what: str

    def grade(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> list[Score]:
        """One score a picture, uint8 [B, S, S, 3]."""


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
        self.reader = Reader.load(family.path / "reader.safetensors", tuple(self.scenes.objects))
        self.parser = PromptParser(family.vocabulary, self.scenes)

    def grade(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> list[Score]:
        seen, backgrounds = self.reader.read(images), read_background(images, self.scenes.backgrounds)
        asked = [self.parser.parse(prompt) for prompt in prompts]
        return [score(a, r, b) for a, r, b in zip(asked, seen, backgrounds, strict=True)]


class ClassGrader:
    """Classes of a class-conditional family, each an object that is asked for once.

    Args:
        family: of classes.
        classify: class ids of pictures, uint8 [B, S, S, 3], by a network that the family never saw.

    Raises:
        ValueError: the family does not draw classes.
    """

    what = "classes"

    def __init__(self, family: Family, classify: Callable[[NDArray[np.uint8]], Sequence[int]]) -> None:
        if not isinstance(family.conditioner, ClassConditioner):
            raise ValueError(f"family {family.name!r} does not draw classes")
        self.conditioner, self.classify = family.conditioner, classify

    def grade(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> list[Score]:
        asked = [self.conditioner.id(prompt) for prompt in prompts]
        pairs = zip(asked, self.classify(images), strict=True)
        return [Score(1, int(a == b), 0, relations=True, background=True) for a, b in pairs]


# By the key of family.json that says what a family was trained on.
GRADERS: dict[str, Callable[[Family], Grader]] = {"scenes": SceneGrader}


def grader_of(family: Family) -> Grader:
    """The grader of a family; ValueError when it has none."""
    return next((made for key, made in GRADERS.items() if key in family.metadata), SceneGrader)(family)
