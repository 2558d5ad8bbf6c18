"""A look at a run of scenes in training: does it follow captions, and how many of its scenes are right?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.scenes import Scene, SceneConfig, article, scenes
from ..engine.conditioning import PhraseConditioner
from ..engine.decoding import Serial
from ..engine.engine import Engine
from ..engine.family import Family
from ..engine.family_config import FamilyConfig
from ..engine.sampling import SamplingParams
from ..measure.images import as_array
from ..measure.metrics.accuracy import PromptParser, score, summarise
from ..measure.readers.objects import FILE as READER
from ..measure.readers.objects import Reader, read_background
from .ar import trained_ar
from .captions import change_of_order
from .config import TrainingFile
from .reader import trained_reader
from .sources import SceneSource
from .token_pool import tokens_of
from .tokenizer import trained_tokenizer

BATCH = 16


@dataclass(frozen=True)
class Gap:
    """How much likelier true images are under their caption than under the one with both objects swapped.

    Attributes:
        nats: an image, the mean.
        right: images that are likelier under their own caption.
        images: how many were asked about.
    """

    nats: float
    right: int
    images: int


def swapped(scene: Scene) -> str:
    """The caption of a pair with both objects swapped."""
    first, second = scene.objects
    return f"{article(second)} {scene.relation} {article(first)} on {article(scene.background)} background"


def held_out(config: SceneConfig, n: int, seed: int, kind: str | None = None) -> list[Scene]:
    """Held-out scenes with distinct captions, of one kind if that is given."""
    found: dict[str, Scene] = {}
    for scene in scenes(config, seed, held_out=True):
        if kind is None or scene.kind == kind:
            found.setdefault(scene.caption, scene)
        if len(found) == n:
            break
    return list(found.values())


class Probe:
    """The averaged weights of a run's AR model, and a reader of what they draw.

    Args:
        config: a training file of scenes.
        run: with a checkpoint of the stage ar.

    Raises:
        ValueError: the file is not of scenes, or the run has no AR model.
    """

    def __init__(self, config: TrainingFile, run: Path) -> None:
        self.config, self.run, self.scenes = config, run, config.scenes()
        conditioner, transformer = trained_ar(config, run)
        assert isinstance(conditioner, PhraseConditioner), "scenes have captions"
        self.conditioner = conditioner
        sampling = SamplingParams(**config.values.get("sampling", {}))
        tokenizer = trained_tokenizer(config, run)
        family = Family(FamilyConfig(config.name, sampling), tokenizer, conditioner, [transformer], {})
        self.family, self.engine = family, Engine(family)

    @torch.inference_mode()
    def gap(self, grid: int, n: int, seed: int) -> Gap:
        """The gap on true images of held-out pairs, without guidance."""
        source = self.config.source(held_out=True)
        assert isinstance(source, SceneSource), "data.kind is scenes"
        tokenizer = self.family.tokenizer
        told = held_out(self.scenes, n, seed, "pair")
        differences: list[Tensor] = []
        for at in range(0, n, BATCH):
            part = told[at : at + BATCH]
            images = [source.renderer.render(scene, grid * tokenizer.config.patch) for scene in part]
            tokens = tokens_of(tokenizer, images, torch.device("cpu"))
            own, other = (
                self.nll(captions, tokens, grid)
                for captions in ([scene.caption for scene in part], [swapped(scene) for scene in part])
            )
            differences.append(other - own)
        each = torch.cat(differences)
        return Gap(float(each.mean()), int((each > 0).sum()), n)

    def nll(self, captions: list[str], tokens: Tensor, grid: int) -> Tensor:
        """Negative log-likelihood [B] in nats of images, tokens [B, grid*grid], under captions."""
        logits = self.family.model(grid)(self.family.features(captions), tokens, grid)
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").sum(dim=1)

    def reader(self) -> Reader:
        """The run's reader, or that of the family it started from."""
        if (self.run / "reader.pt").exists():
            return trained_reader(self.config, self.run)
        start = self.config.initial_family()
        path = self.run if start is None or start.path is None else start.path
        return Reader.load(path / READER, tuple(self.scenes.objects))

    def right(self, grid: int, n: int, seed: int) -> dict[str, Any]:
        """`summarise` of what `Serial` draws on a grid for `n` held-out prompts."""
        reader, parser = self.reader(), PromptParser(self.conditioner.vocabulary, self.scenes)
        prompts = [scene.caption for scene in held_out(self.scenes, n, seed)]
        seeds = [seed + i for i in range(n)]
        images = as_array(self.engine.generate(prompts, decoder=Serial(grid), seed=seeds, batch_size=BATCH).images)
        enlarge = max(1, -(-reader.config.size // images.shape[1]))
        images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
        seen, backgrounds = reader.read(images), read_background(images, self.scenes.backgrounds)
        asked = [parser.parse(prompt) for prompt in prompts]
        return summarise([score(a, r, b) for a, r, b in zip(asked, seen, backgrounds, strict=True)])


def probe(config_path: Path, run: Path, grids: list[int], prompts: int, pairs: int, seed: int) -> Iterator[str]:
    """Lines that say how a run does: the order of objects in the text features, then each grid.

    Args:
        config_path: the training file.
        run: folder of checkpoints.
        grids: to look at; empty takes all of the file.
        prompts: drawn with `Serial`; 0 draws none.
        pairs: whose captions are swapped.
        seed: of scenes and images.

    Raises:
        ValueError: a grid that the file does not have, or what `Probe` raises.
    """
    config = TrainingFile.load(config_path)
    known = list(config.section("ar")["grids"])
    if unknown := [grid for grid in grids if grid not in known]:
        raise ValueError(f"there is no grid {unknown[0]} in {config_path}; its grids are {known}")
    asked = Probe(config, run)
    if len(asked.scenes.objects) > 1:
        change = change_of_order(asked.conditioner, asked.scenes)
        yield f"object slots move by {change:.2f} of their size when a caption swaps them"
    for grid in grids or known:
        gap = asked.gap(grid, pairs, seed)
        line = f"{grid}x{grid}: swapped captions {gap.nats:+.2f} nats an image, right in {gap.right} of {gap.images}"
        if prompts:
            found = asked.right(grid, prompts, seed)
            line += f"; scenes right {found['scene']['value']:.1%}, objects {found['value']:.1%} of {prompts} prompts"
        yield line
