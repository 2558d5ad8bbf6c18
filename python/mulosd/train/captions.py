"""Training of the text encoder on captions alone: it learns to say what a scene shows, before any image is drawn.

The decisive fact for a raster model is which object comes next, and a caption tells it in a roundabout way ("a cat
right of a car": the car comes first). Images teach that slowly, a few tokens in hundreds bear on it; captions with
their truth teach it in minutes. Feature k of the encoder is trained to name the k-th object in raster order, the two
after the objects to name the background and the arrangement. The heads are dropped afterwards, the features stay.

A model with `position_cond` learns what stands where in the same stage: the feature of each position is trained to name
the object that covers it, or the background. Where objects may stand in several places it learns how often they do.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.scenes import KINDS, RELATIONS, Scene, SceneConfig, article, sample_scene
from ..engine.conditioning import PhraseConditioner
from ..engine.models.position_condition import PositionCondition
from ..engine.models.text import TextEncoder, TextEncoderConfig, Vocabulary
from .config import TrainingFile
from .loop import Task
from .tokenizer import trained_here

MAX_OBJECTS = 3
# Least change of both object slots, relative to their size, when a caption's objects are swapped. An encoder that knows
# the order is at 1.2 to 1.3, one that has lost it at 0.03, one that was never trained at 0.00.
LEAST_CHANGE = 0.5


def raster_order(scene: Scene) -> list[str]:
    """The objects of a scene in the order in which a raster scan meets them."""
    return [name for _, name in sorted(zip(scene.cells, scene.objects, strict=True), key=lambda pair: pair[0])]


class CaptionsTask(Task):
    """Cross-entropy of linear readings of the text features: objects in raster order, background, arrangement."""

    def __init__(
        self,
        text: TextEncoderConfig,
        vocabulary: Vocabulary,
        scenes: SceneConfig,
        position_cond: int = 0,
        *,
        batch: int = 256,
        dropout: float = 0.1,
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
        self.position: PositionCondition | None = None
        if position_cond:
            self.position = PositionCondition(position_cond, text.dim, text.length)
            self.module["position"] = self.position
            self.heads["cell"] = nn.Linear(position_cond, len(self.objects) + len(self.backgrounds))
        self.vocabulary, self.scenes, self.count, self.dropout = vocabulary, scenes, batch, dropout

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

    def cells(self, scene: Scene) -> list[int]:
        """What covers each cell, in raster order: the class of an object, or behind those of a background."""
        side, size = self.scenes.cells, self.scenes.sprite_cells
        background = len(self.objects) + self.backgrounds.index(scene.background)
        covered = np.full((side, side), background)
        for name, (row, col) in zip(scene.objects, scene.cells, strict=True):
            covered[row : row + size, col : col + size] = self.objects.index(name)
        return covered.flatten().tolist()

    def batch(self, rng: np.random.Generator, held_out: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Caption ids [B, T], truths [B, MAX_OBJECTS + 2] and cells [B, cells^2] of scenes of one split."""
        drawn: list[Scene] = []
        while len(drawn) < self.count:
            scene = sample_scene(self.scenes, rng)
            if scene.is_held_out(self.scenes.held_out) == held_out:
                drawn.append(scene)
        ids = [self.vocabulary.encode(scene.caption, self.text.config.length) for scene in drawn]
        truths = torch.tensor([self.truth(scene) for scene in drawn])
        return torch.tensor(ids), truths, torch.tensor([self.cells(scene) for scene in drawn])

    def readings(self, features: Tensor) -> list[Tensor]:
        """Logits of every truth, each [B, classes]."""
        readers = [*["object"] * MAX_OBJECTS, "background", "arrangement"]
        return [self.heads[name](features[:, i]).float() for i, name in enumerate(readers)]

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        ids, truth, cells = (t.to(device) for t in self.batch(rng))
        # The unconditional branch learns what captions say on average.
        dropped = torch.from_numpy(rng.random(len(ids)) < self.dropout).to(device)
        null = torch.tensor(self.vocabulary.null(self.text.config.length), device=device)
        features = self.text(torch.where(dropped[:, None], null, ids))
        readings = self.readings(features)
        loss = torch.stack([F.cross_entropy(r, truth[:, i]) for i, r in enumerate(readings)]).sum()
        right = torch.stack([r.argmax(-1) == truth[:, i] for i, r in enumerate(readings)]).all(0)
        figures = {"all_right": float(right[~dropped].float().mean())}
        if self.position is not None:
            # Coordinates are continuous: cells are read at the centres of finer grids too.
            fine = int(rng.choice((1, 2), p=(0.8, 0.2)))
            grid = self.scenes.cells * fine
            here = self.heads["cell"](self.position(features, grid)).float().flatten(0, 1)
            wanted = cells.view(-1, self.scenes.cells, self.scenes.cells)
            wanted = wanted.repeat_interleave(fine, dim=1).repeat_interleave(fine, dim=2).flatten()
            where = F.cross_entropy(here, wanted)
            loss = loss + self.scenes.cells * where
            figures["cell"] = float(where.detach())
        return loss, figures


@torch.no_grad()
def change_of_order(conditioner: PhraseConditioner, scenes: SceneConfig) -> float:
    """How far the slots of two objects move when the caption swaps them, relative to their size.

    Of both slots the one that moves less counts: what is written first changes in any case, which object the raster
    meets first and which second has to be understood. The mean over neighbours in the list of objects and relations.

    Raises:
        ValueError: fewer than two objects, which have no order.
    """
    names = list(scenes.objects)
    if len(names) < 2:
        raise ValueError(f"order is of two objects, the scenes have {len(names)}")
    pairs = [(a, b, relation) for a, b in pairwise(names) for relation in RELATIONS]
    colour = article(next(iter(scenes.backgrounds)))
    told, swapped = (
        conditioner.condition([f"{article(a)} {r} {article(b)} on {colour} background" for a, b, r in some]).features
        for some in (pairs, [(b, a, r) for a, b, r in pairs])
    )
    change = (told - swapped)[:, :2].float().norm(dim=-1) / told[:, :2].float().norm(dim=-1)
    return float(change.min(dim=1).values.mean())


def check_order(conditioner: PhraseConditioner, scenes: SceneConfig) -> None:
    """ValueError if the text encoder does not tell which of two objects comes first."""
    change = change_of_order(conditioner, scenes) if len(scenes.objects) > 1 else LEAST_CHANGE
    if change < LEAST_CHANGE:
        raise ValueError(
            f"the text encoder does not tell 'a left of b' from 'b left of a': its slots of the objects move by "
            f"{change:.2f} of their size when a caption swaps them, at least {LEAST_CHANGE} is needed. Train the stage "
            f"captions longer, and keep what it teaches with ar.freeze_text: true"
        )


def captions_task(config: TrainingFile, run: Path) -> CaptionsTask:
    """The task of the stage `captions`; `from_init: true` goes on from the text encoder of the family `init`."""
    phrases = config.phrases("captions")
    width = config.section("ar").get("model", {}).get("position_cond", 0)
    options = config.options("captions", CaptionsTask, "from_init")
    task = CaptionsTask(phrases.text.config, phrases.vocabulary, config.scenes(), width, **options)
    from_init = config.section("captions").get("from_init", False)
    if not isinstance(from_init, bool):
        raise ValueError(f"{config.path}: captions: from_init must be true or false, got {from_init!r}")
    if from_init:
        start_from(config, phrases, task)
    return task


def start_from(config: TrainingFile, phrases: PhraseConditioner, task: CaptionsTask) -> None:
    """Start from what the family `init` knows of captions.

    Raises:
        ValueError: there is no `init`, or its text encoder has other words or sizes.
    """
    family = config.initial_family()
    if family is None:
        raise ValueError(f"{config.path}: captions: from_init needs `init`, the family to go on from")
    if family.conditioner.to_dict() != phrases.to_dict():
        raise ValueError(
            f"init: family {family.name!r} has other words or another text encoder than this training file"
        )
    task.text.load_state_dict(family.conditioner.weights["text"].state_dict())
    ar, _ = trained_here(family)
    if task.position is not None and ar.position_cond is not None:
        task.position.load_state_dict(ar.position_cond.state_dict())
