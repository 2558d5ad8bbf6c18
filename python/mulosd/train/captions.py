"""Training of the text encoder on captions alone: it learns to say what a scene shows, before any picture is drawn.

The decisive fact for a raster model is which object comes next, and a caption tells it in a roundabout way ("a cat
right of a car": the car comes first). Pictures teach that slowly, a few tokens in hundreds bear on it; captions with
their truth teach it in minutes. Feature k of the encoder is trained to name the k-th object in raster order, the two
after the objects to name the background and the arrangement. The heads are dropped afterwards, the features stay.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.scenes import KINDS, RELATIONS, Scene, SceneConfig, sample_scene
from ..engine.models.text import TextEncoder, TextEncoderConfig, Vocabulary
from .loop import Task

MAX_OBJECTS = 3


def raster_order(scene: Scene) -> list[str]:
    """The objects of a scene in the order in which a raster scan meets them."""
    return [name for _, name in sorted(zip(scene.cells, scene.objects, strict=True), key=lambda pair: pair[0])]


class CaptionsTask(Task):
    """Cross-entropy of linear readings of the text features: objects in raster order, background, arrangement."""

    def __init__(
        self, text: TextEncoderConfig, vocabulary: Vocabulary, scenes: SceneConfig, *, batch: int = 256
    ) -> None:
        if text.length < MAX_OBJECTS + 2:
            raise ValueError(f"the captions stage reads {MAX_OBJECTS + 2} features, text.length is {text.length}")
        self.text = TextEncoder(text)
        self.objects, self.backgrounds = list(scenes.objects), list(scenes.backgrounds)
        self.heads = nn.ModuleDict(
            {
                "object": nn.Linear(text.dim, len(self.objects) + 1),  # the last class: no such object
                "background": nn.Linear(text.dim, len(self.backgrounds)),
                "arrangement": nn.Linear(text.dim, len(KINDS) * (len(RELATIONS) + 1)),
            }
        )
        self.module = nn.ModuleDict({"text": self.text, "heads": self.heads})
        self.vocabulary, self.scenes, self.count = vocabulary, scenes, batch

    def truth(self, scene: Scene) -> list[int]:
        """Classes of a scene: `MAX_OBJECTS` objects in raster order, background, arrangement."""
        names = [self.objects.index(name) for name in raster_order(scene)]
        relation = RELATIONS.index(scene.relation) + 1 if scene.relation else 0
        return [
            *names,
            *[len(self.objects)] * (MAX_OBJECTS - len(names)),
            self.backgrounds.index(scene.background),
            KINDS.index(scene.kind) * (len(RELATIONS) + 1) + relation,
        ]

    def batch(self, rng: np.random.Generator, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Caption ids [B, T] and truths [B, MAX_OBJECTS + 2] of scenes of one split."""
        drawn: list[Scene] = []
        while len(drawn) < self.count:
            scene = sample_scene(self.scenes, rng)
            if scene.is_held_out(self.scenes.held_out) == held_out:
                drawn.append(scene)
        ids = [self.vocabulary.encode(scene.caption, self.text.config.length) for scene in drawn]
        return torch.tensor(ids), torch.tensor([self.truth(scene) for scene in drawn])

    def readings(self, ids: Tensor) -> list[Tensor]:
        """Logits of every truth, each [B, classes]."""
        features = self.text(ids)
        readers = [*["object"] * MAX_OBJECTS, "background", "arrangement"]
        return [self.heads[name](features[:, i]).float() for i, name in enumerate(readers)]

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        ids, truth = (t.to(device) for t in self.batch(rng))
        readings = self.readings(ids)
        loss = torch.stack([F.cross_entropy(r, truth[:, i]) for i, r in enumerate(readings)]).sum()
        right = torch.stack([r.argmax(-1) == truth[:, i] for i, r in enumerate(readings)]).all(0)
        return loss, {"all_right": float(right.float().mean())}
