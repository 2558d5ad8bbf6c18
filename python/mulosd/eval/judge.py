"""The judge of pictures: a grader of prompts, and features compared with those of real pictures, as far as a family
allows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .accuracy import Score, summarise
from .frechet import frechet_estimate
from .graders import Grader, grader_of
from .kid import MIN_SET, Lite0Features, kid, kid_estimate
from .pictures import PictureSet, reconstruct
from .references import Reference, builtin_reference
from ..measure.statistics import Estimate

if TYPE_CHECKING:
    from ..engine.engine import Engine

T = TypeVar("T")


class Judge:
    """Scores pictures against prompts and against real pictures.

    What a family or an installation lacks is left out, and `notes` says why.

    Args:
        engine: whose pictures are judged.
        real_scenes: number of real pictures behind KID and behind the grader's own accuracy.
        seed: of their draw.
        reference: the real pictures; None takes held-out ones of what the family was trained on.

    Raises:
        ValueError: fewer than 4 real pictures.
    """

    def __init__(
        self, engine: Engine, *, real_scenes: int = 256, seed: int = 0, reference: Reference | None = None
    ) -> None:
        if real_scenes < MIN_SET:
            raise ValueError(f"real_scenes must be at least {MIN_SET}, got {real_scenes}")
        self.engine = engine
        missing: dict[str, list[str]] = {}

        def attempt(what: str, make: Callable[[], T]) -> T | None:
            try:
                return make()
            except (ValueError, ImportError) as error:
                missing.setdefault(str(error), []).append(what)
                return None

        self.grader: Grader | None = attempt("accuracy", lambda: grader_of(engine.family))
        self.network = attempt("kid", lambda: Lite0Features(str(engine.family.device)))
        if reference is None:
            reference = attempt("kid", lambda: builtin_reference(engine.family, real_scenes, seed))
        self.reference = None if reference is None else replace(reference, real=self.featured(reference.real))
        self.notes = [
            f"{' and '.join(what)} {'are' if len(what) > 1 else 'is'} null: {why}" for why, what in missing.items()
        ]
        if reference is not None and reference.note is not None:
            self.notes.append(reference.note)

    def featured(self, pictures: PictureSet) -> PictureSet:
        """Pictures with their features, as far as those can be had."""
        if pictures.images is None or pictures.features is not None or self.network is None:
            return pictures
        return replace(pictures, features=self.network(pictures.images))

    def see(self, images: NDArray[np.uint8]) -> PictureSet:
        """Pictures, uint8 [B, H, W, 3], with their features, as far as those can be had."""
        return self.featured(PictureSet(images))

    def scores(self, prompts: Sequence[str], pictures: PictureSet) -> list[Score] | None:
        """One score a picture; None without a grader."""
        return None if self.grader is None else self.grader.grade(prompts, pictures)

    def accuracy(self, prompts: Sequence[str], pictures: PictureSet) -> dict[str, Any] | None:
        """`summarise` of the scores; None without a grader."""
        found = self.scores(prompts, pictures)
        return None if found is None else summarise(found)

    def compared(self, pictures: PictureSet) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Features of the real pictures and of those; None where either is missing, or with fewer than 4 pictures."""
        if self.reference is None or self.reference.real.features is None:
            return None
        if pictures.features is None or len(pictures) < MIN_SET:
            return None
        return self.reference.real.features, pictures.features

    def kid(self, pictures: PictureSet) -> dict[str, float] | None:
        """KID-Lite0 against the real pictures; None where they cannot be compared."""
        sides = self.compared(pictures)
        return None if sides is None else kid(*sides)

    def distances(self, pictures: PictureSet, group: int = 1) -> dict[str, Estimate]:
        """Estimates of "kid" and "frechet" against the real pictures; none where they cannot be compared.

        Args:
            pictures: neighbours are pictures of one prompt.
            group: how many of them.
        """
        sides = self.compared(pictures)
        if sides is None:
            return {}
        return {"kid": kid_estimate(*sides, group=group), "frechet": frechet_estimate(*sides, group=group)}

    def known(self, count: int | None = None) -> dict[str, PictureSet]:
        """Pictures that no decoder made: the reference's `other` as "perfect", and those through the family's tokenizer
        as "reconstruction", up to `count` of each; empty where there are none."""
        reference = self.reference
        if reference is None or not len(reference.other):
            return {}
        wanted = len(reference.other) if count is None else count
        other = reference.other.first(wanted)
        if reference.rebuilt is None:
            rebuilt = PictureSet(reconstruct(self.engine, other.shown))
        else:
            rebuilt = reference.rebuilt.first(wanted)
        return {"perfect": self.featured(other), "reconstruction": self.featured(rebuilt)}

    def known_accuracy(self, pictures: PictureSet) -> dict[str, Any] | None:
        """`accuracy` of a set of `known`; None without a grader, or where the real pictures have no prompts."""
        prompts = None if self.reference is None else self.reference.prompts
        return None if prompts is None else self.accuracy(prompts[: len(pictures)], pictures)

    def references(self) -> dict[str, Any]:
        """What the measures give for pictures that no decoder made.

        Returns:
            {"reader": {"accuracy_real", …}, "reconstruction": {"accuracy", "kid"}, "kid_real"}: the grader on real
            unseen pictures; those pictures encoded and decoded by the family's tokenizer, the best that tokens can
            show; and KID between two sets of real pictures, its zero. Entries are None where the measure is missing.
        """
        found = self.known()
        if not found:
            return {"reader": None, "reconstruction": None, "kid_real": None}
        real = self.known_accuracy(found["perfect"])
        reader = None
        if real is not None:
            reader = {
                "accuracy_real": real["value"],
                "ci95": real["ci95"],
                "scene_accuracy_real": real["scene"]["value"],
                "scenes": real["prompts"],
                "objects": real["objects"],
            }
        rebuilt = found["reconstruction"]
        return {
            "reader": reader,
            "reconstruction": {"accuracy": self.known_accuracy(rebuilt), "kid": self.kid(rebuilt)},
            "kid_real": self.kid(found["perfect"]),
        }
