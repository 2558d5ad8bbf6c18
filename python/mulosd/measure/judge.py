"""The judge of images: a grader of prompts, and features compared with those of real images, as far as a family
allows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .images import ImageSet, reconstruct
from .metrics.accuracy import Score, summarise
from .metrics.frechet import frechet_estimate
from .metrics.frechet import report as frechet_report
from .metrics.kid import MIN_SET, kid, kid_estimate
from .readers.graders import Grader, grader_of
from .readers.lite0 import Lite0Features
from .references import Reference, builtin_reference
from .statistics import Estimate

if TYPE_CHECKING:
    from ..engine.engine import Engine

T = TypeVar("T")


class Judge:
    """Scores images against prompts and against real images.

    What a family or an installation lacks is left out, and `notes` says why.

    Args:
        engine: whose images are judged.
        real_scenes: number of real images behind KID and behind the grader's own accuracy.
        seed: of their draw.
        reference: the real images; None takes held-out ones of what the family was trained on.

    Raises:
        ValueError: fewer than 4 real images.
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

    @property
    def scenes(self) -> bool:
        """Whether scores are of whole scenes: objects, relations and background."""
        return self.grader is not None and self.grader.scenes

    def featured(self, images: ImageSet) -> ImageSet:
        """Images with their features, as far as those can be had."""
        if images.images is None or images.features is not None or self.network is None:
            return images
        return replace(images, features=self.network(images.images))

    def see(self, images: NDArray[np.uint8]) -> ImageSet:
        """Images, uint8 [B, H, W, 3], with their features, as far as those can be had."""
        return self.featured(ImageSet(images))

    def scores(self, prompts: Sequence[str], images: ImageSet) -> list[Score] | None:
        """One score an image; None without a grader."""
        return None if self.grader is None else self.grader.grade(prompts, images)

    def accuracy(self, prompts: Sequence[str], images: ImageSet) -> dict[str, Any] | None:
        """`summarise` of the scores; None without a grader."""
        found = self.scores(prompts, images)
        return None if found is None else summarise(found)

    def compared(self, images: ImageSet) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Features of the real images and of those; None where either is missing, or with fewer than 4 images."""
        if self.reference is None or self.reference.real.features is None:
            return None
        if images.features is None or len(images) < MIN_SET:
            return None
        return self.reference.real.features, images.features

    def kid(self, images: ImageSet) -> dict[str, float] | None:
        """KID-Lite0 against the real images; None where they cannot be compared."""
        sides = self.compared(images)
        return None if sides is None else kid(*sides)

    def distances(self, images: ImageSet, group: int = 1) -> dict[str, Estimate]:
        """Estimates of "kid" and "frechet" against the real images; none where they cannot be compared.

        Args:
            images: neighbours are images of one prompt.
            group: how many of them.
        """
        sides = self.compared(images)
        if sides is None:
            return {}
        return {"kid": kid_estimate(*sides, group=group), "frechet": frechet_estimate(*sides, group=group)}

    def stated(self, distances: dict[str, Estimate], images: ImageSet) -> dict[str, Any]:
        """The `distances` of images as a row states them; None where there are none."""
        sides = self.compared(images)
        if sides is None:
            return {"kid": None, "frechet": None}
        frechet = frechet_report(distances["frechet"], len(sides[0]), len(images), sides[0].shape[1])
        return {"kid": distances["kid"].plain(), "frechet": frechet}

    def known(self, count: int | None = None) -> dict[str, ImageSet]:
        """Images that no decoder made: the reference's `other` as "perfect", and those through the family's tokenizer
        as "reconstruction", up to `count` of each; empty where there are none."""
        reference = self.reference
        if reference is None or not len(reference.other):
            return {}
        wanted = len(reference.other) if count is None else count
        other = reference.other.first(wanted)
        if reference.rebuilt is None:
            rebuilt = ImageSet(reconstruct(self.engine, other.shown))
        else:
            rebuilt = reference.rebuilt.first(wanted)
        return {"perfect": self.featured(other), "reconstruction": self.featured(rebuilt)}

    def known_accuracy(self, images: ImageSet) -> dict[str, Any] | None:
        """`accuracy` of a set of `known`; None without a grader, or where the real images have no prompts."""
        prompts = None if self.reference is None else self.reference.prompts
        return None if prompts is None else self.accuracy(prompts[: len(images)], images)

    def references(self) -> dict[str, Any]:
        """What the measures give for images that no decoder made.

        Returns:
            {"reader": {"accuracy_real", …}, "reconstruction": {"accuracy", "kid"}, "kid_real"}: the grader on real
            unseen images; those images encoded and decoded by the family's tokenizer, the best that tokens can
            show; and KID between two sets of real images, its zero. Entries are None where the measure is missing.
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
