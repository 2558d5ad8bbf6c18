"""Held-out images beside what the tokenizer of a run makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..engine.paths import expanded
from ..measure.sheets import contact_sheet
from .config import TrainingFile
from .losses import psnr
from .token_pool import as_input
from .tokenizer import trained_tokenizer

CPU = torch.device("cpu")


def preview(config_path: Path, run: Path, path: Path, *, count: int = 8, size: int | None = None) -> float:
    """Write a sheet of held-out images, each followed by its reconstruction; returns the mean PSNR in dB.

    Args:
        config_path: the family's training file.
        run: folder with the tokenizer's checkpoint.
        path: file to write; its suffix chooses the format.
        count: images; the first ones of the held-out split's draw, none picked.
        size: side in px; None is the largest that the tokenizer was trained on.

    Raises:
        ValueError: the run has no tokenizer.
    """
    config, run = TrainingFile.load(config_path), expanded(run)
    tokenizer = trained_tokenizer(config, run)
    side = size or max(config.section("tokenizer")["batch"])
    source = config.source(held_out=True)
    images, captions, quality = [], [], []
    for number in range(count):
        caption, (picture,) = source.captioned(np.random.default_rng([number]), (side,))
        real = as_input([picture], CPU)
        with torch.inference_mode():
            out = tokenizer.decode(tokenizer.encode(real))
        quality.append(psnr(float(((out - real) ** 2).mean()) / 4))
        rebuilt = ((out[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        images += [Image.fromarray(picture), Image.fromarray(rebuilt)]
        captions += [caption, f"{quality[-1]:.1f} dB"]
    contact_sheet(images, captions, path, size=side)
    return float(np.mean(quality))
