"""The judge of pictures: a grader of prompts, and features compared with those of real pictures, as far as a family
allows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .accuracy import Score, summarise
from .graders import Grader, grader_of
from .kid import MIN_SET, Lite0Features, kid
from .reader import as_array
from .references import Reference, builtin_reference

if TYPE_CHECKING:
    from ..engine.engine import Engine

CHUNK = 32


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
        self.reference = reference
        self.grader: Grader | None = None
        self._features: Lite0Features | None = None
        missing: dict[str, list[str]] = {}
        try:
            self.grader = grader_of(engine.family)
        except ValueError as error:
            missing.setdefault(str(error), []).append("accuracy")
        try:
            if self.reference is None:
                self.reference = builtin_reference(engine.family, real_scenes, seed)
            self._features = Lite0Features(str(engine.family.device))
            self.real_features = self._features(self.reference.real)
        except (ValueError, ImportError) as error:
            missing.setdefault(str(error), []).append("kid")
        self.notes = [
            f"{' and '.join(what)} {'are' if len(what) > 1 else 'is'} null: {why}" for why, what in missing.items()
        ]

    def scores(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> list[Score] | None:
        """One score a picture, uint8 [B, H, W, 3]; None without a grader."""
        return None if self.grader is None else self.grader.grade(prompts, images)

    def accuracy(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> dict[str, Any] | None:
        """`summarise` of the scores; None without a grader."""
        found = self.scores(prompts, images)
        return None if found is None else summarise(found)

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Features [B, d] of pictures, uint8 [B, H, W, 3]; None without the network."""
        return None if self._features is None else self._features(images)

    def kid(self, images: NDArray[np.uint8]) -> dict[str, float] | None:
        """KID-Lite0 against the real pictures; None without the feature network or with fewer than 4 pictures."""
        made = self.features(images)
        return None if made is None or len(made) < MIN_SET else kid(self.real_features, made)

    def references(self) -> dict[str, Any]:
        """What the measures give for pictures that no decoder made.

        Returns:
            {"reader": {"accuracy_real", …}, "reconstruction": {"accuracy", "kid"}, "kid_real"}: the grader on real
            unseen pictures; those pictures encoded and decoded by the family's tokenizer, the best that tokens can
            show; and KID between two sets of real pictures, its zero. Entries are None where the measure is missing.
        """
        if self.reference is None or not len(self.reference.other):
            return {"reader": None, "reconstruction": None, "kid_real": None}
        prompts, other = self.reference.prompts, self.reference.other
        real = None if prompts is None else self.accuracy(prompts, other)
        rebuilt = self.reconstruct(other)
        reader = None
        if real is not None:
            reader = {
                "accuracy_real": real["value"],
                "ci95": real["ci95"],
                "scene_accuracy_real": real["scene"]["value"],
                "scenes": real["prompts"],
                "objects": real["objects"],
            }
        accuracy = None if prompts is None else self.accuracy(prompts, rebuilt)
        return {
            "reader": reader,
            "reconstruction": {"accuracy": accuracy, "kid": self.kid(rebuilt)},
            "kid_real": self.kid(other),
        }

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pictures encoded and decoded by the family's tokenizer: the best that tokens can show."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), CHUNK):
                x = torch.from_numpy(images[start : start + CHUNK]).to(self.engine.family.device)
                tokens = self.engine.family.tokenizer.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1)
                parts.append(as_array(self.engine.to_images(tokens)))
        return np.concatenate(parts)
