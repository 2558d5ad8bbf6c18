"""Whether an image shows what its prompt asks for: objects, their number, their relation, the background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...data.scenes import COUNTS, RELATIONS, SceneConfig
from ...engine.models.text import Vocabulary
from ..readers.objects import Reading
from ..statistics import share_interval, wilson


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for.

    Args:
        objects: name -> how many.
        relations: (first, relation, second), relation one of `RELATIONS`.
        background: colour name, None when the prompt names none.
    """

    objects: dict[str, int] = field(default_factory=dict)
    relations: tuple[tuple[str, str, str], ...] = ()
    background: str | None = None

    @property
    def total(self) -> int:
        return sum(self.objects.values())


class PromptParser:
    """Reads prompts by the vocabulary of a family, so that synonyms and plurals mean what they mean to the model."""

    def __init__(self, vocabulary: Vocabulary, config: SceneConfig) -> None:
        def by_id(words: dict[str, str]) -> dict[int, str]:
            missing = [phrase for phrase in words if phrase not in vocabulary.phrases]
            if missing:
                raise ValueError(f"the vocabulary of this family lacks {missing}, which its scenes use")
            return {vocabulary.phrases[phrase]: meaning for phrase, meaning in words.items()}

        self.vocabulary = vocabulary
        self._objects = by_id({name: name for name in config.objects})
        self._backgrounds = by_id({name: name for name in config.backgrounds})
        # "of" is a word that vocabularies ignore, so relations are listed without it.
        self._relations = by_id({r.removesuffix(" of"): r for r in RELATIONS})
        self._counts = {vocabulary.phrases[word]: n for n, word in COUNTS.items() if word in vocabulary.phrases}

    def parse(self, prompt: str) -> Asked:
        """What a prompt asks for; unknown words ask for nothing.

        A count multiplies the next object, a relation holds between the objects named before and after it, and of
        several colours the last is the background.
        """
        objects: Counter[str] = Counter()
        relations: list[tuple[str, str, str]] = []
        background = None
        last, pending, count = None, None, 1
        for i in self.vocabulary.parse(prompt)[0]:
            if i in self._objects:
                name = self._objects[i]
                objects[name] += count
                if pending and last:
                    relations.append((last, pending, name))
                last, pending, count = name, None, 1
            elif i in self._counts:
                count = self._counts[i]
            elif i in self._relations:
                pending = self._relations[i]
            elif i in self._backgrounds:
                background = self._backgrounds[i]
        return Asked(dict(objects), tuple(relations), background)


def holds(relation: str, first: Reading, second: Reading) -> bool:
    """Whether one object stands in a relation to another: on the named side, and farther along that axis than across.

    Raises:
        ValueError: an unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"relation must be one of {RELATIONS}, got {relation!r}")
    down, right = second.row - first.row, second.col - first.col
    along, across = (right, down) if relation in ("left of", "right of") else (down, right)
    if relation in ("right of", "below"):
        along = -along
    return along > abs(across)


@dataclass(frozen=True)
class Score:
    """One image against its prompt: objects asked for, found among them, seen beyond them, and the rest."""

    asked: int
    found: int
    extra: int
    relations: bool
    background: bool

    @property
    def scene(self) -> bool:
        """Everything right: all objects, none extra, relations and background."""
        return self.found == self.asked and not self.extra and self.relations and self.background


def score(asked: Asked, seen: Sequence[Reading], background: str) -> Score:
    """Compare what was asked with what is seen, as multisets of objects."""
    counted = Counter(r.name for r in seen)
    found = sum((counted & Counter(asked.objects)).values())

    def true(first: str, relation: str, second: str) -> bool:
        return any(
            holds(relation, a, b)
            for i, a in enumerate(seen)
            for j, b in enumerate(seen)
            if i != j and a.name == first and b.name == second
        )

    return Score(
        asked=asked.total,
        found=found,
        extra=len(seen) - found,
        relations=all(true(*r) for r in asked.relations),
        background=asked.background in (None, background),
    )


def summarise(scores: Sequence[Score], group: int = 1) -> dict[str, Any]:
    """Object accuracy pooled over prompts, with scene accuracy as an extra.

    Args:
        scores: one an image.
        group: neighbours that are images of one prompt, the unit of the intervals.

    Returns:
        {"value", "ci95", "objects", "prompts", "extra_per_image", "scene": {"value", "ci95"}}. Shares are in 0..1;
        `value` and `ci95` are None when no prompt asks for an object.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("there are no images to score")
    figures = np.asarray([(s.asked, s.found, s.scene, 1) for s in scores], np.float64)
    asked, found, right, images = figures.reshape(-1, group, 4).sum(axis=1).T
    any_asked = asked.sum() > 0
    scene = wilson(float(right.sum()), len(scores)) if group == 1 else share_interval(right, images)
    return {
        "value": float(found.sum() / asked.sum()) if any_asked else None,
        "ci95": list(share_interval(found, asked)) if any_asked else None,
        "objects": int(asked.sum()),
        "prompts": len(scores) // group,
        "extra_per_image": sum(s.extra for s in scores) / len(scores),
        "scene": {"value": float(right.sum() / len(scores)), "ci95": list(scene)},
    }
