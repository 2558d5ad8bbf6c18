"""Training of the independent reader: real renders, shifted, disturbed, some with an object spoiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.scenes import Renderer, Scene, sample_scene
from ..data.sprites import Sprites
from ..measure.readers.objects import CELL_PX, Reader, ReaderConfig, ReaderNet
from .checkpoint import load_averaged
from .config import TrainingFile
from .loop import Task

SPOILERS = ("shuffle", "chimera", "half")


def spoil(
    picture: NDArray[np.uint8], scene: Scene, which: int, renderer: Renderer, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Break one object of a render, so that it is no longer that object: uint8 [S, S, 3] -> the same shape.

    Its cells are shuffled, or half of it is another object's, or half of it is missing. Without such examples a
    reader of a closed set of objects names any coloured blob, and broken images would pass for right ones.
    """
    size, config = picture.shape[0], renderer.config
    cell, n = size // config.cells, config.sprite_cells
    (row, col), side = scene.cells[which], cell * n
    area = (slice(row * cell, row * cell + side), slice(col * cell, col * cell + side))
    out = picture.copy()
    kind = SPOILERS[int(rng.integers(len(SPOILERS)))]
    if kind == "shuffle":
        blocks = picture[area].reshape(n, cell, n, cell, 3).swapaxes(1, 2).reshape(n * n, cell, cell, 3)
        order = np.roll(np.arange(n * n), int(rng.integers(1, n * n)))  # every block moves
        out[area] = blocks[order].reshape(n, n, cell, cell, 3).swapaxes(1, 2).reshape(side, side, 3)
        return out
    if kind == "chimera":
        others = [name for name in config.objects if name != scene.objects[which]]
        replacement = tuple(str(rng.choice(others)) if i == which else name for i, name in enumerate(scene.objects))
        other = renderer.render(replace(scene, objects=replacement), size)
    else:
        kept = [i for i in range(len(scene.objects)) if i != which]
        bare = replace(scene, objects=tuple(scene.objects[i] for i in kept), cells=tuple(scene.cells[i] for i in kept))
        other = renderer.render(bare, size)
    half = slice(0, side // 2) if rng.integers(2) else slice(side // 2, side)
    view, source = out[area], other[area]
    if rng.integers(2):
        view[half] = source[half]
    else:
        view[:, half] = source[:, half]
    return out


def disturb(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise, blur, brightness, contrast and lost resolution, each image its own: float [B, 3, S, S] in [-1, 1]."""
    b, _, size, _ = images.shape

    def draw(low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32)).to(images.device)

    coarse = F.interpolate(F.avg_pool2d(images, 2), size=(size, size), mode="bilinear", align_corners=False)
    images = torch.where(draw(0, 1, (b, 1, 1, 1)) < 0.25, coarse, images)
    sigma = draw(0.2, 1.2, (b, 1))
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0, device=images.device) / sigma) ** 2)
    taps = (taps / taps.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    blurred = F.conv2d(images.reshape(1, 3 * b, size, size), taps[:, None, :, None], padding=(2, 0), groups=3 * b)
    blurred = F.conv2d(blurred, taps[:, None, None, :], padding=(0, 2), groups=3 * b).reshape(images.shape)
    images = torch.where(draw(0, 1, (b, 1, 1, 1)) < 0.5, blurred, images)
    images = images * draw(0.85, 1.15, (b, 1, 1, 1)) + draw(-0.1, 0.1, (b, 3, 1, 1))
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    return images + noise * draw(0, 0.12, (b, 1, 1, 1))


class ReaderTask(Task):
    """Cross-entropy of the centre map on renders of the training split.

    Args:
        renderer: draws the scenes; its scene configuration gives names, cells and split.
        batch: images a step.
        spoiled: share of images in which one object is broken and must not be read.
        channels: widths of the network.
    """

    def __init__(
        self,
        renderer: Renderer,
        *,
        batch: int = 32,
        spoiled: float = 0.25,
        channels: tuple[int, int, int] = (32, 64, 96),
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        if not 0 <= spoiled <= 1:
            raise ValueError(f"spoiled must be in [0, 1], got {spoiled}")
        self.renderer, self.batch, self.spoiled = renderer, batch, spoiled
        c = renderer.config
        self.config = ReaderConfig(tuple(c.objects), c.cells, c.sprite_cells, channels)
        self.net = ReaderNet(self.config)
        self.module = self.net
        self._class = {name: i + 1 for i, name in enumerate(self.config.names)}

    def example(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """One render, shifted by up to half a cell, uint8 [S, S, 3], and its classes, int64 [cells, cells]."""
        scenes = self.renderer.config
        scene = sample_scene(scenes, rng)
        while scene.is_held_out(scenes.held_out):
            scene = sample_scene(scenes, rng)
        size = self.config.size
        picture = self.renderer.render(scene, size)
        broken = -1
        if rng.random() < self.spoiled:
            broken = int(rng.integers(len(scene.objects)))
            picture = spoil(picture, scene, broken, self.renderer, rng)
        shift = rng.integers(-CELL_PX // 2, CELL_PX // 2 + 1, 2)
        rows, cols = (np.clip(np.arange(size) - s, 0, size - 1) for s in shift)
        picture = picture[rows][:, cols]
        classes = np.zeros((self.config.cells, self.config.cells), np.int64)
        for i, (name, cell) in enumerate(zip(scene.objects, scene.cells, strict=True)):
            if i != broken:
                centre = (np.asarray(cell) + self.config.sprite_cells / 2) * CELL_PX + shift
                row, col = (np.clip(centre, 0, size - 1) // CELL_PX).astype(int)
                classes[row, col] = self._class[name]
        return picture, classes

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        examples = [self.example(rng) for _ in range(self.batch)]
        images = torch.from_numpy(np.stack([p for p, _ in examples])).to(device).permute(0, 3, 1, 2)
        classes = torch.from_numpy(np.stack([c for _, c in examples])).to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            disturbed = disturb(images.float() / 127.5 - 1, rng)
        logits = self.module(disturbed).float()
        # Summed over cells: almost all are empty, and a mean would make each object count for next to nothing.
        loss = F.cross_entropy(logits, classes, reduction="sum") / self.batch
        with torch.no_grad():
            objects = classes > 0
            right = (logits.argmax(dim=1) == classes)[objects].float().mean()
        return loss, {"objects": float(right)}


def reader_task(config: TrainingFile, run: Path) -> ReaderTask:
    """The task of the stage `reader`; ValueError for a family not of scenes, which has no truth to read."""
    if config.data["kind"] != "scenes":
        raise ValueError(f"{config.path}: a reader needs data.kind 'scenes', got {config.data['kind']!r}")
    renderer = Renderer(config.scenes(), Sprites.load(config.resolve(config.data["sprites"])))
    return ReaderTask(renderer, **config.options("reader", ReaderTask))


def trained_reader(config: TrainingFile, run: Path) -> Reader:
    """The reader of a run, with its averaged weights."""
    net = reader_task(config, run).net
    load_averaged(net, run, "reader")
    return Reader(net)
