"""Distillation of a drafter towards its target: the target's own samples, and its judgement of the drafter's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.decoding import Serial
from ..engine.family import Family, add_eagle
from ..engine.family_config import write_json
from ..engine.likelihood import log_probabilities, teacher_forced
from ..engine.models.ar_model import ARModel
from ..engine.models.eagle import EagleDrafter
from ..engine.models.transformer import Transformer
from ..engine.paths import expanded
from ..engine.upsampling import downsample, upsample
from ..engine.weights import save_part
from .align import copy_of, entropy, short_loop, start
from .ar import with_grids
from .checkpoint import alone
from .config import images_of
from .loop import Task, train
from .own_samples import Prompts, SamplePool, draw, training_prompts


def with_own_drafter(family: Family, grid: int) -> Family:
    """The family with a copy of the model of one grid for that grid alone; the other models keep their weights.

    Where one network serves the drafter's and the target's grids, training the drafter in place would move the target
    as well. The price of the copy is its size.

    Args:
        family: any.
        grid: of the drafter; not the target's.
    """
    shared = family.model(grid)
    rest = tuple(g for g in shared.config.grids if g != grid)
    models = [restricted(shared, (grid,))]
    for model in family.models:
        if model is not shared:
            models.append(model)
        elif rest:
            models.append(restricted(model, rest))
    target = max(models, key=lambda m: max(m.config.grids))
    eagle = None if family.eagle is None else retargeted(family.eagle, target)
    tokenizer = cast("Any", family.tokenizer)
    return Family(family.config, tokenizer, family.conditioner, models, family.resamplers, None, eagle, family.srgan)


def retargeted(drafter: EagleDrafter, target: ARModel) -> EagleDrafter:
    """A feature drafter with the same weights on a target that may serve fewer grids."""
    grids = tuple(g for g in drafter.config.grids if g in target.config.grids)
    other = EagleDrafter(replace(drafter.config, grids=grids), target)
    other.load_state_dict(drafter.state_dict())
    return other


def restricted(model: ARModel, grids: tuple[int, ...]) -> ARModel:
    """A copy of a model that serves some of its grids."""
    config = replace(cast("Any", model.config), grids=grids)
    if not isinstance(model, Transformer):
        # These kinds have no weights that belong to one grid.
        other = copy.deepcopy(model)
        other.config = config
        return other
    fewer = Transformer(config).to(model.output.weight)
    fewer.load_state_dict(with_grids(model.state_dict(), model.config.grids, grids))
    return fewer


class DistillTask(Task):
    """A drafter learns to draft what its target would draw, and what its target believes.

    Two terms, both on the distribution that drafts are drawn from (guidance and temperature included):

    * cross-entropy on the target's own samples, down-sampled to the drafter's grid;
    * on drafts that the drafter draws in this very step, `-(w - mean w) log q(token)`, where w in 0..1 is how far the
      target believes the r x r tokens that the draft token becomes: the geometric mean of their probabilities, of
      those alone where the target is confident. This is the policy gradient of that belief, each token answering for
      its own cell. Tokens without a confident cell are left alone.

    Student samples and selective supervision: VarKD (arXiv 2606.06078) and GKD (arXiv 2306.13649).

    Args:
        family: frozen, but for its model of the drafter's grid, which must serve no other (see `with_own_drafter`).
        scale: r = target / drafter.
        prompts: what both draw for.
        method: up- and down-sampler between the grids, see `upsample`.
        pool: number of samples of the target.
        batch: samples of either kind a step.
        confidence: entropy in nats, up to which the target is listened to.
        own, drafted: weights of the two terms.
        seed: of the target's samples.

    Raises:
        ValueError: the family has no such scale, or the drafter serves other grids too.
    """

    def __init__(
        self,
        family: Family,
        scale: int,
        prompts: Prompts,
        *,
        method: str = "latent",
        pool: int = 512,
        batch: int = 8,
        confidence: float = 0.7,
        own: float = 1.0,
        drafted: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.family, self.prompts, self.method, self.size = family, prompts, method, batch
        self.scale, self.grid, self.target = scale, family.drafter_grid(scale), family.grids[-1]
        self.module = family.model(self.grid)
        if self.module.config.grids != (self.grid,):
            raise ValueError(
                f"the drafter serves the grids {self.module.config.grids}; it must serve {self.grid} alone"
            )
        self.module.requires_grad_(True)
        self.samples = SamplePool(family, prompts, Serial(self.target), size=pool, seed=seed)
        self.confidence, self.own, self.drafted = confidence, own, drafted

    def log_likelihood(self, prompts: list[str], tokens: Tensor, seeds: list[int] | None = None) -> Tensor:
        """The drafter's log-probabilities float32 [B, n] of tokens [B, n] of images with these seeds."""
        params = self.family.sampling
        with torch.no_grad():
            condition = self.family.condition(prompts, seeds)
        logits = teacher_forced(self.family, condition, tokens, self.grid, params)
        log_q = log_probabilities(logits, params, list(range(tokens.shape[1])) * len(tokens))
        return log_q.gather(-1, tokens.flatten()[:, None]).view_as(tokens)

    @torch.no_grad()
    def belief(self, prompts: list[str], drafts: Tensor, seeds: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """How far the target believes each draft token [B, n], in 0..1, and whether it is confident there."""
        params, r = self.family.sampling, self.scale
        square = drafts.view(-1, self.grid, self.grid)
        with torch.autocast(drafts.device.type, enabled=False):
            tokens = upsample(self.family, square, self.target, self.method).flatten(1)
        logits = teacher_forced(self.family, self.family.condition(prompts, seeds), tokens, self.target, params)
        log_p = log_probabilities(logits, params, list(range(tokens.shape[1])) * len(tokens))
        confident = (entropy(log_p) <= self.confidence).view(-1, 1, self.target, self.target).float()
        each = log_p.gather(-1, tokens.flatten()[:, None]).view_as(confident)
        share, total = F.avg_pool2d(confident, r), F.avg_pool2d(each * confident, r)
        return (total / share.clamp(min=1e-6)).exp().flatten(1), (share > 0).flatten(1)

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        self.family.to(device)
        loss = torch.zeros((), device=device)
        figures = {}
        if self.own > 0:
            prompts, tokens, seeds = self.samples.take(rng.integers(self.samples.size, size=self.size).tolist(), device)
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                square = tokens.view(-1, self.target, self.target)
                wanted = downsample(self.family, square, self.grid, self.method).flatten(1)
            nll = -self.log_likelihood(prompts, wanted, seeds).mean()
            loss = loss + self.own * nll
            figures["own"] = nll
        if self.drafted > 0:
            prompts = [self.prompts(rng) for _ in range(self.size)]
            seeds = rng.integers(2**62, size=self.size).tolist()
            drafts = draw(self.family, prompts, seeds, Serial(self.grid), device)
            belief, confident = self.belief(prompts, drafts, seeds)
            count = confident.sum().clamp(min=1)
            mean = (belief * confident).sum() / count
            log_q = self.log_likelihood(prompts, drafts, seeds)
            loss = loss - self.drafted * ((belief - mean) * confident * log_q).sum() / count
            figures |= {"belief": mean, "confident": confident.float().mean()}
        return loss, {k: float(v.detach()) for k, v in figures.items()}


def distill_drafter(
    folder: str | Path,
    output: Path,
    run: Path,
    *,
    scale: int | None = None,
    images: Path | None = None,
    prompts: Sequence[str] = (),
    steps: int = 400,
    lr: float = 3e-5,
    device: str = "cpu",
    save_every: int = 50,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Train a family's drafter towards its target; see `DistillTask`. The drafter becomes a network of its own.

    Arguments, but for `config`, and errors are those of `align_upsampler`; `options` are those of `DistillTask`.
    """
    output = expanded(output)
    before, ratio = start(folder, output, scale)
    family = with_own_drafter(before, before.drafter_grid(ratio))
    grid, target = before.drafter_grid(ratio), before.grids[-1]
    latent = {(grid, target), (target, grid)} <= set(before.resamplers)
    with alone(run, "distill") as run:
        task = DistillTask(
            family,
            ratio,
            training_prompts(before, images_of(before, images), prompts),
            method="latent" if latent else "pixel",
            seed=seed,
            **options,
        )
        averaged = train(task, short_loop(steps, lr, device, save_every), run, seed=seed, name="distill", device=device)
    task.module.load_state_dict(averaged)
    with copy_of(before, output, ratio) as new:
        kept = {id(model): name for name, model in before._models().items()}
        parts = family._models()
        for name in set(kept.values()) - set(parts):
            (new / f"{name}.safetensors").unlink()
        for name, model in parts.items():
            if id(model) not in kept:
                save_part(name, model, new)
        write_json(new, family.describe())
        if family.eagle is not None:  # its file says for which grids it is
            add_eagle(new, family.eagle)
    return output
