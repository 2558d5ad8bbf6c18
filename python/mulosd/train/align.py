"""Alignment of an up-sampler with what happens in decoding: the drafter's own drafts, judged by the target."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.decoding import Serial
from ..engine.family import Family, store_resamplers
from ..engine.family_config import change
from ..engine.likelihood import log_probabilities, teacher_forced
from ..engine.models.upsampler import LatentResampler
from ..engine.paths import expanded
from ..engine.weights import new_folder
from .checkpoint import alone
from .config import images_of
from .loop import LoopConfig, Task, train
from .own_samples import Prompts, SamplePool, training_prompts
from .sources import ImageSource
from .token_pool import TokenPool


class AlignTask(Task):
    """An up-sampler learns to give tokens that the target believes, on drafts that the drafter drew.

    With q the up-sampler's distribution over codes and p the target's at the same position behind the up-sampler's own
    tokens, the loss is `-log sum(q * p)`: the target's probability of a token that is drawn from q. Its gradient moves
    q towards the product q * p, so the draft keeps its say about what is in the image. Only positions where the
    target is confident are supervised; elsewhere it does not know what the draft wants (selective supervision of
    student samples: VarKD, arXiv 2606.06078). Two terms keep the up-sampler from drifting to images that are merely
    probable: the divergence from what it was on the same drafts, and cross-entropy on pairs of real images.

    Args:
        family: frozen but for the up-sampler, which is a copy.
        scale: r = target / drafter.
        prompts: what drafts are drawn for.
        source: of real images, or None.
        pool: number of drafts.
        batch: drafts, and real images, a step.
        every: drafts are judged in every Nth step, for the target's forward costs far more than the rest; with 0
            never, which leaves the real images. Without real images in every step.
        confidence: entropy in nats, up to which the target is listened to.
        agreement: weight of the divergence from the old up-sampler.
        real: weight of the cross-entropy on real images.
        temperature: of the cosines that make q; about the difference of the cosines of codes that are to be told apart.
        seed: of the drafts.

    Raises:
        ValueError: the family has no such scale, or no latent up-sampler for it, or there is nothing to learn from.
    """

    def __init__(
        self,
        family: Family,
        scale: int,
        prompts: Prompts,
        source: ImageSource | None,
        *,
        pool: int = 1024,
        batch: int = 8,
        every: int = 1,
        confidence: float = 0.7,
        agreement: float = 0.1,
        real: float = 1.0,
        temperature: float = 5e-4,
        seed: int = 0,
    ) -> None:
        self.family, self.size = family, batch
        self.source, self.target = family.drafter_grid(scale), family.grids[-1]
        self.old = family.resampler(self.source, self.target)
        self.module = self.resampler = copy.deepcopy(self.old).requires_grad_(True)
        self.drafts = SamplePool(family, prompts, Serial(self.source), size=pool, seed=seed)
        self.pictures = None if source is None or real == 0 else TokenPool(source, family.tokenizer, pool)
        if not every and self.pictures is None:
            raise ValueError("without judged drafts (every 0) real images are needed, with a weight (real) above 0")
        # Other steps would have nothing to learn from.
        self.every = every if self.pictures is not None else 1
        self.confidence, self.agreement, self.real, self.temperature = confidence, agreement, real, temperature

    def distribution(self, resampler: torch.nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities float32 [B, N, V] of an up-sampler, and what it picks [B, N], of tokens [B, n]."""
        codebook = self.family.tokenizer.codebook
        features = resampler(codebook[tokens.view(-1, self.source, self.source)]).flatten(1, 2)
        with torch.autocast(features.device.type, enabled=False):
            log_q = (self.resampler.scores(features, codebook) / self.temperature).log_softmax(dim=-1)
            return log_q, self.resampler.pick(features.detach(), codebook)

    @torch.no_grad()
    def judge(self, prompts: list[str], tokens: Tensor, seeds: list[int] | None = None) -> Tensor:
        """The target's log-probabilities float32 [B, N, V] behind tokens [B, N] of images with these seeds."""
        params = self.family.sampling
        logits = teacher_forced(self.family, self.family.condition(prompts, seeds), tokens, self.target, params)
        positions = list(range(tokens.shape[1])) * len(tokens)
        return log_probabilities(logits, params, positions).view(*tokens.shape, -1)

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        self.family.to(device)
        loss, figures = torch.zeros((), device=device), dict[str, float]()
        if self.every and step % self.every == 0:
            loss, figures = self.judged(rng, device)
        if self.pictures is not None:
            drawn = self.pictures.draw(rng, (self.source, self.target), self.size, device)
            log_real, picked = self.distribution(self.resampler, drawn.tokens[self.source])
            wanted = drawn.tokens[self.target]
            loss = loss + self.real * F.nll_loss(log_real.flatten(0, 1), wanted.flatten())
            figures["hit"] = float((picked == wanted).float().mean())
        return loss, figures

    def judged(self, rng: np.random.Generator, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        """Loss and figures of a batch of drafts."""
        prompts, drafts, seeds = self.drafts.take(rng.integers(self.drafts.size, size=self.size).tolist(), device)
        log_q, candidates = self.distribution(self.resampler, drafts)
        log_p = self.judge(prompts, candidates, seeds)
        with torch.no_grad():
            log_old, before = self.distribution(self.old, drafts)
        confident = entropy(log_p) <= self.confidence
        believed = -torch.logsumexp(log_q + log_p, dim=-1)
        likelihood = (believed * confident).sum() / confident.sum().clamp(min=1)
        moved = (log_old.exp() * (log_old - log_q)).sum(dim=-1).mean()
        figures = {
            "nll": -log_p.gather(-1, candidates[..., None]).mean(),
            "confident": confident.float().mean(),
            "changed": (candidates != before).float().mean(),
            "moved": moved.detach(),
        }
        return likelihood + self.agreement * moved, {k: float(v) for k, v in figures.items()}


def entropy(log_p: Tensor) -> Tensor:
    """Entropy in nats, [...] of log-probabilities [..., V]."""
    return -torch.xlogy(log_p.exp(), log_p.exp()).sum(dim=-1)


def align_upsampler(
    folder: str | Path,
    output: Path,
    run: Path,
    *,
    scale: int | None = None,
    images: Path | None = None,
    config: Path | None = None,
    prompts: Sequence[str] = (),
    steps: int = 400,
    lr: float = 3e-4,
    device: str = "cpu",
    save_every: int = 50,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Train a family's latent up-sampler on the drafter's drafts under the target's likelihood; see `AlignTask`.

    Args:
        folder: a family by name or folder; it is left as it is.
        output: the new folder, which appears whole or not at all; it has yet to be calibrated.
        run: folder of the checkpoint and the log; a run that it holds is resumed.
        scale: None is the largest.
        images: captioned images that keep the up-sampler to what images look like; a family of scenes has its own.
        config: the training file that names them, instead of `images`.
        prompts: what to draft for; empty takes classes, or the images' captions.
        steps, lr, device, save_every, seed: of training.
        options: of `AlignTask`.

    Raises:
        ValueError: there is no such family, scale, latent up-sampler or folder, nothing to draft for, or `output`
            exists already.
    """
    output = expanded(output)
    family, ratio = start(folder, output, scale)
    with alone(run, "align") as run:
        source = images_of(family, images, config=config)
        task = AlignTask(family, ratio, training_prompts(family, source, prompts), source, seed=seed, **options)
        averaged = train(task, short_loop(steps, lr, device, save_every), run, seed=seed, name="align", device=device)
    aligned = LatentResampler(replace(task.resampler.config, temperature=task.temperature))
    aligned.load_state_dict(averaged)
    with copy_of(family, output, ratio) as new:
        store_resamplers(new, [aligned])
    return output


def start(folder: str | Path, output: Path, scale: int | None) -> tuple[Family, int]:
    """The family to start from and the scale to align; ValueError where the result could not be written in the end."""
    if output.exists():
        raise ValueError(f"--output {output} exists already; choose a new folder or remove it")
    family = Family.load(folder)
    ratio = family.scale if scale is None else scale
    if ratio is None:
        raise ValueError(f"family {family.name!r} has no grid that divides its largest: it cannot draft")
    return family, ratio


def short_loop(steps: int, lr: float, device: str, save_every: int) -> LoopConfig:
    """A short training that starts from finished weights."""
    return LoopConfig(
        steps,
        lr,
        warmup=min(20, steps),
        decay=max(1, steps // 2),
        ema=0.98,
        weight_decay=0.0,
        precision="bf16" if torch.device(device).type == "cuda" else "fp32",
        log_every=10,
        save_every=save_every,
        threads=torch.get_num_threads(),
    )


@contextmanager
def copy_of(family: Family, output: Path, scale: int) -> Iterator[Path]:
    """A new folder with the files of a family, but for what describes it to people, which becomes `output` in the end.

    The calibration of the scale is dropped: it was measured on other drafts.
    """
    if family.path is None:
        raise ValueError(f"family {family.name!r} was not loaded from a folder")
    kept = {key: c.to_dict() for key, c in family.config.calibrations.items() if c.scale != scale}
    with new_folder(output) as new:
        for path in family.path.iterdir():
            if path.is_file() and path.name not in ("README.md", "contact_sheet.png"):
                shutil.copyfile(path, new / path.name)
        yield new
        change(new, lambda _: {"calibration": kept})
