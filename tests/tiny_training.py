"""The training file of a family so small that its stages take seconds, and pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise_pictures(folder: Path, count: int) -> Path:
    """Write pictures of noise, 16 px a side, of the classes a and b by turns; the folder is made."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{'ab'[i % 2]}-{i}.png")
    return folder


def tiny_training(pictures: Path, loop: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """Contents of a training file on grids of 4 and 8 tokens; `sections` are those beside tokenizer and ar."""
    return {
        "family": "tiny",
        "data": {"kind": "folder", "path": str(pictures)},
        "tokenizer": {
            "model": {"codebook_size": 12, "code_dim": 4, "channels": [8], "decoder_blocks": 1},
            "batch": {16: 2},
            "loop": loop,
        },
        "ar": {
            "grids": [4, 8],
            "model": {"dim": 32, "n_layers": 1, "n_heads": 1, "ffn_dim": 32, "head_dim": 32, "global_cond": True},
            "classes": {"dim": 8},
            "phases": [{"until": 9, "shares": {4: 0.5, 8: 0.5}, "batch": {4: 2, 8: 2}}],
            "loop": loop,
        },
        **{name: {**values, "loop": loop} for name, values in sections.items()},
    }
