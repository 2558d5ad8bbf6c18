"""Training of latent resamplers, of variants of them with other losses, and of those of a finished family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.family import Family, store_resamplers
from ..engine.family_config import check_keys, mapping
from ..engine.models.kinds import ImageTokenizer
from ..engine.models.upsampler import LatentResampler, ResamplerConfig
from ..engine.paths import expanded
from .checkpoint import alone, checkpoint, load_averaged
from .config import TrainingFile, keywords
from .loop import LoopConfig, train
from .losses import ImageTask, feature_maps, psnr
from .sources import FolderSource, ImageSource, check_folder
from .token_pool import TokenPool
from .tokenizer import tokenizer_config, trained_tokenizer

Resamplers = dict[tuple[int, int], LatentResampler]
VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ResamplerTask(ImageTask):
    """All resamplers of a family at once; each step trains every pair on one batch of aligned images.

    Losses (MuLo-SD, arXiv 2601.05149, section on up-sampling), each with its weight: cross-entropy over cosine
    similarities to the codebook, commitment to the true code vector, and of the decoded prediction (straight through)
    the pixel error, the perceptual distance (`features`: by the tokenizer's own "encoder", or by "lite0") and what a
    patch discriminator says.

    With `crop`, a random window of so many target tokens a side is decoded of each prediction instead of all of it: the
    resampler still sees the whole draft, while decoding and what follows it, most of a step, get cheaper by the square.
    At the window's edge the decoder sees padding; a tokenizer that was trained on crops of that size is used to it.
    """

    def __init__(
        self,
        pairs: list[ResamplerConfig],
        tokenizer: ImageTokenizer,
        source: ImageSource,
        *,
        batch: int = 8,
        cross_entropy: float = 1.0,
        commitment: float = 0.5,
        pixel: float = 1.0,
        perceptual: float = 0.0,
        features: str = "encoder",
        adversarial: float = 0.0,
        temperature: float = ResamplerConfig.temperature,
        token_noise: float = 0.02,
        pool: int = 0,
        crop: int = 0,
    ) -> None:
        if crop < 0:
            raise ValueError(f"crop must be at least 1 token of the target grid, or 0 for all of it, got {crop}")
        self.resamplers = {p.name: LatentResampler(p) for p in pairs}
        self.module = nn.ModuleDict(self.resamplers)
        self.tokenizer = tokenizer
        self._frozen = cast("nn.Module", tokenizer).eval().requires_grad_(False)
        self.pool = TokenPool(source, tokenizer, pool)
        self.pairs, self.size = pairs, batch
        self.cross_entropy, self.commitment, self.pixel = cross_entropy, commitment, pixel
        super().__init__(perceptual, lambda: feature_maps(features, tokenizer), adversarial)
        self.temperature, self.token_noise, self.crop = temperature, token_noise, crop

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        grids = tuple(sorted({g for p in self.pairs for g in (p.source, p.target)}))
        self._frozen.to(device)
        codebook = self.tokenizer.codebook
        drawn = self.pool.draw(rng, grids, self.size, device)
        tokens = {g: t.view(self.size, g, g) for g, t in drawn.tokens.items()}
        in_pixels = self.pixel > 0 or self.perceptual > 0 or self.critic is not None
        pictures = {g: self.pool.pictures(drawn, g, device) for g in {p.target for p in self.pairs} if in_pixels}
        total = torch.zeros((), device=device)
        figures = {}
        for pair in self.pairs:
            given, wanted = tokens[pair.source], tokens[pair.target]
            # The drafter errs; a resampler that has seen wrong tokens repairs some of them.
            wrong = torch.from_numpy(rng.random(tuple(given.shape)) < self.token_noise).to(device)
            noise = torch.from_numpy(rng.integers(len(codebook), size=tuple(given.shape))).to(device)
            z = F.normalize(self.resamplers[pair.name](codebook[torch.where(wrong, noise, given)]).float(), dim=-1)
            loss = self.commitment * ((z - codebook[wanted]) ** 2).sum(-1).mean()
            if self.cross_entropy > 0:
                logits = z @ codebook.t() / self.temperature
                loss = loss + self.cross_entropy * F.cross_entropy(logits.flatten(0, 2), wanted.flatten())
            with torch.no_grad():
                self.resamplers[pair.name].counts += torch.bincount(wanted.flatten(), minlength=len(codebook))
                predicted = self.resamplers[pair.name].pick(z.detach(), codebook)
            if in_pixels:
                shown, real = z + (codebook[predicted] - z).detach(), pictures[pair.target]
                if 0 < self.crop < pair.target:
                    at = rng.integers(pair.target - self.crop + 1, size=(self.size, 2)).tolist()
                    patch = self.tokenizer.config.patch
                    shown = windows(shown, at, self.crop)
                    real = windows(real.movedim(1, -1), at, self.crop, patch).movedim(-1, 1)
                out = self.tokenizer.decode_latents(shown)
                error = ((out - real) ** 2).mean()
                figures[f"psnr{pair.name}"] = psnr(float(error.detach()) / 4)
                loss = loss + self.pixel * error
                loss = self.judged(self.perceived(loss, out, real), out, real, step)
            total = total + loss
            changed = wanted != wanted.flatten(1).mode(dim=1).values[:, None, None]
            figures[f"hit{pair.name}"] = float((predicted == wanted)[changed].float().mean())
        return total, figures


def windows(x: Tensor, at: list[list[int]], side: int, patch: int = 1) -> Tensor:
    """Windows [B, side, side, d] of x [B, H, W, d], one each, from (row, column) `at` on, all in units of `patch`."""
    corners = [(row * patch, column * patch) for row, column in at]
    size = side * patch
    return torch.stack([one[r : r + size, c : c + size] for one, (r, c) in zip(x, corners, strict=True)])


def checkpoint_name(variant: str | None) -> str:
    """What the checkpoint and the log of a variant are called in the run; None is the up-samplers themselves."""
    return "upsampler" if variant is None else f"upsampler-{variant}"


def variant_names(config: TrainingFile) -> list[str]:
    """Variants of a training file, in its order."""
    return list(mapping(config.section("upsampler").get("variants") or {}, f"{config.path}: upsampler.variants"))


def varied(config: TrainingFile, name: str) -> TrainingFile:
    """The training file whose section `upsampler` is that of a variant.

    A variant states what differs from the section: `pairs` (some of them), options of `ResamplerTask`, and parts of
    `loop`. Sizes cannot differ, for it starts from weights of the section's own.

    Raises:
        ValueError: no such variant, or it states something else.
    """
    section = config.section("upsampler")
    known = variant_names(config)
    if name not in known:
        raise ValueError(
            f"{config.path}: there is no variant {name!r} of the up-samplers; upsampler.variants has "
            f"{', '.join(known) or 'none'}"
        )
    if not VARIANT.fullmatch(name):
        raise ValueError(f"{config.path}: the variant {name!r} names a file: use letters, digits, '.', '_' and '-'")
    where = f"{config.path}: upsampler.variants.{name}"
    stated = mapping(section.pop("variants")[name] or {}, where)
    stated_loop = mapping(stated.get("loop", {}), f"{where}.loop")
    check_keys(stated, ("pairs", *keywords(ResamplerTask), "loop"), (), where)
    check_keys(stated_loop, [f.name for f in fields(LoopConfig)], (), f"{where}.loop")
    missing = [pair for pair in stated.get("pairs", []) if pair not in section["pairs"]]
    if missing:
        raise ValueError(f"{where}: pairs {missing} are none of the section's, which are {section['pairs']}")
    loop = {**section.get("loop", {}), **stated_loop}
    return TrainingFile({**config.values, "upsampler": {**section, **stated, "loop": loop}}, config.path)


def resampler_configs(config: TrainingFile) -> list[ResamplerConfig]:
    """Every latent resampler of the family."""
    section, tokens = config.section("upsampler"), tokenizer_config(config)
    sizes: dict[str, Any] = {"code_dim": tokens.code_dim, "vocab_size": tokens.codebook_size}
    if "temperature" in section:
        sizes["temperature"] = float(section["temperature"])

    def resampler(given: dict[str, Any]) -> list[ResamplerConfig]:
        return [ResamplerConfig(a, b, **sizes, **given) for a, b in section["pairs"]]

    return config.build("upsampler.model", resampler, section.get("model"))


def resampler_task(config: TrainingFile, run: Path) -> ResamplerTask:
    """The task of the stage `upsampler`."""
    options = config.options("upsampler", ResamplerTask, "model", "pairs", "variants")
    return ResamplerTask(
        resampler_configs(config), trained_tokenizer(config, run), config.source(captions=False), **options
    )


def trained_resamplers(config: TrainingFile, run: Path, variant: str | None = None) -> Resamplers:
    """Latent resamplers of a run by (source, target) grid, those of a variant if one is named."""
    sizes = resampler_configs(config if variant is None else varied(config, variant))
    resamplers = {(p.source, p.target): LatentResampler(p) for p in sizes}
    load_averaged(nn.ModuleDict({m.config.name: m for m in resamplers.values()}), run, checkpoint_name(variant))
    return resamplers


def trained_variants(
    config: TrainingFile, run: Path, names: Sequence[str] = ()
) -> tuple[dict[str, tuple[Resamplers, dict[str, Any]]], list[str]]:
    """Variants that a run has trained.

    Args:
        config: the training file.
        run: folder of checkpoints.
        names: those that are wanted; empty takes every one that is there.

    Returns:
        By name, the resamplers and how they were trained: the options of the task, `pairs`, and the `steps` so far. And
        notes on variants of the file that the run lacks.

    Raises:
        ValueError: a variant that is asked for is unknown or not trained.
    """
    known = variant_names(config)
    there = [name for name in known if (run / f"{checkpoint_name(name)}.pt").exists()]
    found = {}
    for name in names or there:
        resamplers = trained_resamplers(config, run, name)
        section = varied(config, name).section("upsampler")
        stated = {key: value for key, value in section.items() if key in ("pairs", *keywords(ResamplerTask))}
        found[name] = (resamplers, {**stated, "steps": checkpoint(run, checkpoint_name(name))["step"]})
    missing = [] if names else [name for name in known if name not in there]
    return found, [f"variant {name} is left out: it is not trained" for name in missing]


def train_upsampler(
    folder: Path,
    images: Path,
    run: Path,
    *,
    scales: tuple[int, ...] | None = None,
    down: bool = False,
    steps: int | None = None,
    batch: int = 4,
    lr: float = 3e-4,
    channels: int = 256,
    blocks: int = 6,
    pixel: float = 1.0,
    perceptual: float = 0.1,
    commitment: float = 0.25,
    adversarial: float = 0.0,
    precision: str = "bf16",
    device: str = "cpu",
    save_every: int = 500,
) -> list[str]:
    """Train latent up-samplers and put them into the family's folder.

    Args:
        folder: the family's folder.
        images: cropped to squares and reduced to each grid's size.
        run: folder of the checkpoint and the log; a run that it holds is resumed.
        scales: ratios to train for; None is all of the family.
        down: train the down-samplers of multi-cycle decoding too.
        steps, batch, lr, precision, save_every: of training; 10,000 steps where none are given.
        channels, blocks: sizes of each network.
        pixel, perceptual, commitment, adversarial: weights of the losses, see `ResamplerTask`.
        device: a torch device.

    Returns:
        Names of what was trained, such as "16-32".

    Raises:
        ValueError: there is no such family or folder, or the family has no such scale.
    """
    folder = expanded(folder)
    family = Family.load(folder)
    if family.path is None or not folder.is_dir():
        raise ValueError(f"--family {folder}: name a folder; a family that came with the package is not rewritten")
    target = family.grids[-1]
    drafters = [family.drafter_grid(s) for s in (scales or family.scales)]
    if not drafters:
        raise ValueError(f"family {family.name!r} has no grid that divides its largest: there is nothing to up-sample")
    sizes = family.tokenizer.config
    pairs = [
        ResamplerConfig(a, b, sizes.code_dim, channels, blocks, sizes.codebook_size)
        for g in drafters
        for a, b in ([(g, target), (target, g)] if down else [(g, target)])
    ]
    check_folder(expanded(images), family.image_sizes[-1], captions=False)
    with alone(run, "upsampler") as run:
        torch.manual_seed(0)
        task = ResamplerTask(
            pairs,
            family.tokenizer,
            FolderSource(images, captions=False),
            batch=batch,
            cross_entropy=0.0,
            commitment=commitment,
            pixel=pixel,
            perceptual=perceptual,
            adversarial=adversarial,
        )
        length = 10_000 if steps is None else steps
        loop = LoopConfig(length, lr, decay=max(1, length // 5), precision=precision, save_every=save_every)
        averaged = train(task, loop, run, seed=0, name="upsampler", device=device)
    trained = {p.name: LatentResampler(p) for p in pairs}
    nn.ModuleDict(trained).load_state_dict(averaged)
    store_resamplers(folder, list(trained.values()))
    return list(trained)
