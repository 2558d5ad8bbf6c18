"""Training of the feature drafter that `Eagle` decodes with, against a frozen family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.conditioning import Conditioner
from ..engine.family import Family, add_eagle
from ..engine.models.eagle import EagleConfig, EagleDrafter
from ..engine.models.tokenizer import Tokenizer
from ..engine.models.transformer import Transformer
from ..engine.paths import expanded
from .ar import dropped_condition, same_conditions, trained_ar
from .checkpoint import checkpoint, load_averaged
from .config import TrainingFile
from .loop import Task
from .sources import ImageSource
from .token_pool import TokenPool
from .tokenizer import trained_here, trained_tokenizer


class EagleTask(Task):
    """Smooth L1 between features, and cross-entropy to the target's distribution (EAGLE, arXiv 2401.15077).

    Both are taken behind the target's final norm, where its output head reads them. The target sees real images; its
    features get noise, since the drafter will have to go on from its own. Captions are dropped as in the training of
    the target, so that both branches of guidance are drafted.

    Args:
        drafter: what is trained; its target is frozen.
        conditioner: captions to conditions, frozen.
        batch: images a step, by grid.
        pool: so many images a grid are drawn, the target's features of them kept in memory; a drafter's step is far
            cheaper than the forward of its target.
        regression, classification: weights of the losses.
        feature_noise: half the width of uniform noise on features of unit scale.
    """

    def __init__(
        self,
        drafter: EagleDrafter,
        conditioner: Conditioner,
        tokenizer: Tokenizer,
        source: ImageSource,
        *,
        batch: dict[int, int],
        pool: int = 1024,
        cond_dropout: float = 0.1,
        regression: float = 1.0,
        classification: float = 0.1,
        feature_noise: float = 0.1,
    ) -> None:
        self.module = self.drafter = drafter
        self.target, self.conditioner, self.tokenizer = drafter.target, conditioner, tokenizer
        for module in (self.target, *conditioner.weights.values(), tokenizer):
            module.eval().requires_grad_(False)
        self.counts = batch
        self.tokens = TokenPool(source, tokenizer)
        self.cond_dropout, self.feature_noise = cond_dropout, feature_noise
        self.regression, self.classification = regression, classification
        self.size = pool
        self.pool: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def pictures(self, grid: int, numbers: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Condition features, tokens [B, grid*grid] and the target's features [B, grid*grid - 1, dim] of images."""
        target = self.target.to(device)
        self.tokenizer.to(device)
        for number in numbers:
            if (grid, number) in self.pool:
                continue
            rng = np.random.default_rng([grid, number])
            drawn = self.tokens.draw(rng, (grid,), 1, device)
            tokens = drawn.tokens[grid]
            dropped = torch.tensor([rng.random() < self.cond_dropout], device=device)
            cond = dropped_condition(self.conditioner, drawn.captions, dropped)
            hidden = target.hidden(cond, tokens, grid)[:, target.config.cond_len :]
            self.pool[grid, number] = (cond, tokens, hidden)
        cond, tokens, hidden = (torch.cat(t) for t in zip(*(self.pool[grid, n] for n in numbers), strict=True))
        return cond, tokens, hidden

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        target = self.target
        grid = int(rng.choice(self.drafter.config.grids))
        numbers = rng.integers(self.size, size=self.counts[grid]).tolist()
        with torch.no_grad():
            cond, tokens, hidden = self.pictures(grid, numbers, device)
            wanted = target.norm(hidden).float()
            likely = target.output(wanted).float().softmax(dim=-1)
            noise = torch.from_numpy(rng.uniform(-1, 1, tuple(hidden.shape)).astype(np.float32)).to(device)
            scale = hidden.float().square().mean(dim=-1, keepdim=True).sqrt()
            before = F.pad((hidden + self.feature_noise * scale * noise)[:, :-1], (0, 0, 1, 0))
        drafted = target.norm(self.drafter(cond, before, tokens[:, :-1], grid))
        log_q = target.output(drafted).float().log_softmax(dim=-1)
        regression = F.smooth_l1_loss(drafted.float(), wanted)
        classification = -(likely * log_q).sum(dim=-1).mean()
        with torch.no_grad():
            # The share of drafted tokens that speculative sampling would accept.
            overlap = torch.minimum(likely, log_q.exp()).sum(dim=-1).mean()
            entropy = -(likely * likely.clamp(min=1e-12).log()).sum(dim=-1).mean()
        loss = self.regression * regression + self.classification * classification
        figures = {"feature": regression, "kl": classification - entropy, "overlap": overlap}
        return loss, {k: float(v.detach()) for k, v in figures.items()}


def drafter_of(config: TrainingFile, target: Transformer) -> EagleDrafter:
    """The feature drafter that the section `eagle` describes, untrained."""
    section = config.section("eagle")
    grids, width = tuple(section.get("batch", ())), target.config.head_dim
    sizes = config.build("eagle.model", lambda given: EagleConfig(grids, width, **given), section.get("model"))
    return EagleDrafter(sizes, target)


def eagle_task(config: TrainingFile, run: Path) -> EagleTask:
    """The task of the feature drafter: its target is the run's AR model, or else that of the family in `eagle.family`.

    Raises:
        ValueError: neither is there, or the family has other words or classes than the training file.
    """
    section = config.section("eagle")
    options = config.options("eagle", EagleTask, "model", "family")
    if (run / "ar.pt").exists() or "family" not in section:
        conditioner, target = trained_ar(config, run)
        tokenizer = trained_tokenizer(config, run)
    else:
        family = Family.load(config.resolve(section["family"]))
        if not same_conditions(family.conditioner, config.conditioner()):
            raise ValueError(f"eagle.family: {family.name!r} has other words or classes than this training file")
        target, tokenizer = trained_here(family)
        conditioner = family.conditioner
    return EagleTask(drafter_of(config, target), conditioner, tokenizer, config.source(), **options)


def trained_drafter(config: TrainingFile, run: Path, target: Transformer) -> EagleDrafter:
    """The feature drafter of a run, with its averaged weights."""
    drafter = drafter_of(config, target)
    load_averaged(drafter, run, "eagle")
    return drafter


def attach(config_path: Path, run: Path, folder: Path) -> Path:
    """Give an existing family folder the feature drafter of a run; returns the file written.

    Raises:
        ValueError: the folder is no family, the run has no drafter, or its sizes do not fit the family.
    """
    config, run, folder = TrainingFile.load(config_path), expanded(run), expanded(folder)
    family = Family.load(folder)
    checkpoint(run, "eagle")  # whether there is one
    try:
        drafter = trained_drafter(config, run, trained_here(family)[0])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the drafter of {run} does not fit family {family.name!r}: {error}") from error
    return add_eagle(family.path or folder, drafter)
