"""Latent up-samplers for a family that is already there, trained on a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..engine.family import Family, store_resamplers
from ..engine.models.upsampler import LatentResampler, ResamplerConfig
from .loop import LoopConfig, train
from .sources import FolderSource
from .upsampler import ResamplerTask


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
        images: pictures, cropped to squares and reduced to each grid's size.
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
    torch.manual_seed(0)
    task = ResamplerTask(
        pairs,
        family.tokenizer,
        FolderSource(images),
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
