"""The judge of pictures: reader, prompt parser and KID against real scenes, as far as a family allows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.family import scene_config, sprites
from ..data.scenes import Renderer, scenes
from .accuracy import PromptParser, Score, score, summarise
from .kid import MIN_SET, Lite0Features, kid
from .reader import Reader, as_array, read_background

if TYPE_CHECKING:
    from ..engine.engine import Engine

# The real pictures must not be those of the prompts, which are drawn with the plain seed.
REAL_SEED = 1_000_003
CHUNK = 32


class Judge:
    """Scores pictures against prompts and against real held-out scenes.

    What a family or an installation lacks is left out, and `notes` says why.

    Args:
        engine: whose pictures are judged.
        real_scenes: number of real pictures behind KID and behind the reader's own accuracy.
        seed: of their draw.

    Raises:
        ValueError: fewer than 4 real scenes.
    """

    def __init__(self, engine: Engine, *, real_scenes: int = 256, seed: int = 0) -> None:
        if real_scenes < MIN_SET:
            raise ValueError(f"real_scenes must be at least {MIN_SET}, got {real_scenes}")
        self.engine = engine
        self.notes: list[str] = []
        self.reader: Reader | None = None
        self._features: Lite0Features | None = None
        self._perfect: NDArray[np.uint8] | None = None
        family = engine.family
        try:
            self.scenes = scene_config(family)
            renderer = Renderer(self.scenes, sprites(family))
        except ValueError as error:
            self.notes.append(f"accuracy and kid are null: {error}")
            return
        drawn = islice(scenes(self.scenes, seed + REAL_SEED, self.scenes.held_out > 0), 2 * real_scenes)
        both = [(s.caption, renderer.render(s, family.image_sizes[-1])) for s in drawn]
        # One half is what KID compares with; the other stands in for a decoder that makes no mistake.
        real = np.stack([picture for _, picture in both[:real_scenes]])
        self._perfect = np.stack([picture for _, picture in both[real_scenes:]])
        self._captions = [caption for caption, _ in both[real_scenes:]]
        try:
            if family.path is None:
                raise ValueError(f"family {family.name!r} was not loaded from a folder")
            self.reader = Reader.load(family.path / "reader.safetensors", tuple(self.scenes.objects))
            self._parser = PromptParser(family.vocabulary, self.scenes)
        except ValueError as error:
            self.reader = None
            self.notes.append(f"accuracy is null: {error}")
        try:
            self._features = Lite0Features(str(family.device))
            self._real_features = self._features(real)
        except ImportError as error:
            self.notes.append(f"kid is null: {error}")

    def scores(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> list[Score] | None:
        """One score a picture, uint8 [B, H, W, 3]; None without a reader."""
        if self.reader is None:
            return None
        seen, backgrounds = self.reader.read(images), read_background(images, self.scenes.backgrounds)
        asked = [self._parser.parse(prompt) for prompt in prompts]
        return [score(a, r, b) for a, r, b in zip(asked, seen, backgrounds, strict=True)]

    def accuracy(self, prompts: Sequence[str], images: NDArray[np.uint8]) -> dict[str, Any] | None:
        """`summarise` of the scores; None without a reader."""
        found = self.scores(prompts, images)
        return None if found is None else summarise(found)

    def kid(self, images: NDArray[np.uint8]) -> dict[str, float] | None:
        """KID-Lite0 against the real scenes; None without the feature network or with fewer than 4 pictures."""
        if self._features is None or len(images) < MIN_SET:
            return None
        return kid(self._real_features, self._features(images))

    def references(self) -> dict[str, Any]:
        """What the measures give for pictures that no decoder made.

        Returns:
            {"reader": {"accuracy_real", …}, "reconstruction": {"accuracy", "kid"}, "kid_real"}: the reader on real
            unseen scenes; those scenes encoded and decoded by the family's tokenizer, the best that tokens can show;
            and KID between two sets of real scenes, its zero. Entries are None where the measure is missing.
        """
        if self._perfect is None:
            return {"reader": None, "reconstruction": None, "kid_real": None}
        real = self.accuracy(self._captions, self._perfect)
        rebuilt = self._reconstruct(self._perfect)
        reader = None
        if real is not None:
            reader = {
                "accuracy_real": real["value"],
                "ci95": real["ci95"],
                "scene_accuracy_real": real["scene"]["value"],
                "scenes": real["prompts"],
                "objects": real["objects"],
            }
        return {
            "reader": reader,
            "reconstruction": {"accuracy": self.accuracy(self._captions, rebuilt), "kid": self.kid(rebuilt)},
            "kid_real": self.kid(self._perfect),
        }

    def _reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), CHUNK):
                x = torch.from_numpy(images[start : start + CHUNK]).to(self.engine.family.device)
                tokens = self.engine.family.tokenizer.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1)
                parts.append(as_array(self.engine.to_images(tokens)))
        return np.concatenate(parts)
