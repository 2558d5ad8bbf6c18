"""An archive of small pictures of three classes, a training file for it, and features that need no network."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mulosd.measure import judge
from mulosd.measure.readers import lite0
from mulosd.train import classifier, reference

COLOURS = {"Big_Red": (200, 30, 30), "green": (30, 180, 40), "flower_green": (20, 200, 60), "blue": (40, 50, 210)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gradient in each class's colour, noise of its own in every picture; the last one is a copy of the first."""
    rng = np.random.default_rng(0)
    files, labels = [], []
    for i in range(80):
        label = i % len(COLOURS)
        x = np.linspace(0.3, 1, 32)[None, :, None] * np.asarray(list(COLOURS.values())[label]) + rng.normal(
            scale=12, size=(32, 32, 3)
        )
        buffer = io.BytesIO()
        Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
        files.append(buffer.getvalue())
        labels.append(label)
    files.append(files[0])
    labels.append(0)
    path = tmp_path_factory.mktemp("photos") / "photos.npz"
    np.savez(
        path,
        data=np.frombuffer(b"".join(files), np.uint8),
        offs=np.cumsum([0, *map(len, files)]),
        label=np.asarray(labels, np.int16),
        classes=np.asarray(list(COLOURS)),
    )
    return path


@pytest.fixture
def config(archive: Path, tmp_path: Path) -> Path:
    loop = {
        "steps": 4,
        "lr": 1e-3,
        "warmup": 1,
        "decay": 1,
        "ema": 0.5,
        "log_every": 1,
        "precision": "fp32",
        "threads": 1,
    }
    values = {
        "family": "tiny",
        "data": {
            "kind": "photos",
            "path": str(archive),
            "held_out": 0.25,
            "augment": {"flip": 0.5, "area": 0.7, "aspect": 1.2, "colour": 0.1},
            "names": {"flower_green": "green"},
        },
        "tokenizer": {
            "model": {"codebook_size": 16, "code_dim": 4, "channels": [8], "decoder_blocks": 1, "fold": 2, "width": 12},
            "batch": {16: 2, 32: 2},
            "crop": 16,
            "adversarial": 0.1,
            "adversarial_from": 2,
            "validation": 4,
            "loop": {**loop, "validate_every": 2},
        },
        "ar": {
            "grids": [4, 8],
            "model": {"dim": 32, "n_layers": 2, "n_heads": 1, "ffn_dim": 32, "head_dim": 32, "global_cond": True},
            "classes": {"dim": 8},
            "pool": 20,
            "validation": 5,
            "phases": [{"until": 99, "shares": {4: 0.5, 8: 0.5}, "batch": {4: 4, 8: 2}}],
            "loop": {**loop, "validate_every": 2},
        },
        "upsampler": {"pairs": [[4, 8], [8, 4]], "model": {"channels": 8, "blocks": 1}, "batch": 2, "loop": loop},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


class Averages:
    """Stands in for Lite0: block averages of pictures of 32 px, or of pictures reduced to that."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def __call__(self, images: np.ndarray, batch: int = 16) -> np.ndarray:  # type: ignore[type-arg]
        side = images.shape[1] // 8
        blocks = images.reshape(len(images), 8, side, 8, side, 3).mean(axis=(2, 4))
        return blocks.reshape(len(images), -1).astype(np.float32)


@pytest.fixture
def averages(monkeypatch: pytest.MonkeyPatch) -> type[Averages]:
    """`Averages`, in the place of Lite0 wherever that is used."""
    for module in (classifier, reference, lite0, judge):
        monkeypatch.setattr(module, "Lite0Features", Averages)
    return Averages
