"""Where training images and captions come from: composed scenes, or a folder of one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.scenes import Renderer, is_held_out, sample_scene


class ImageSource(Protocol):
    """Random images, and captioned images aligned at several sizes."""

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        """One image at `size` px a side, cropped to at most `crop`: uint8 [S, S, 3]."""

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        """A caption and the same picture at each size."""


def random_crop(picture: NDArray[np.uint8], crop: int, rng: np.random.Generator, step: int = 8) -> NDArray[np.uint8]:
    """A crop whose corner is a multiple of `step` px; the picture itself when it is not larger."""
    size = picture.shape[0]
    if size <= crop:
        return picture
    y, x = (int(rng.integers((size - crop) // step + 1)) * step for _ in range(2))
    return picture[y : y + crop, x : x + crop]


class SceneSource:
    """Scenes of the training split (or of the held-out one)."""

    def __init__(self, renderer: Renderer, held_out: bool = False) -> None:
        self.renderer, self.held_out = renderer, held_out

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        config = self.renderer.config
        while True:
            scene = sample_scene(config, rng)
            if scene.is_held_out(config.held_out) == self.held_out:
                return scene.caption, [self.renderer.render(scene, s) for s in sizes]

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        picture = self.captioned(rng, (size,))[1][0]
        best = random_crop(picture, crop, rng)
        for _ in range(2):  # an empty crop teaches nothing
            other = random_crop(picture, crop, rng)
            if other.std() > best.std():
                best = other
        return best


class FolderSource:
    """Images of a folder with captions from `NAME.txt` beside each, or from the file name ("a_red_car-3.png")."""

    EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

    def __init__(self, folder: Path, held_out: bool = False, share: float = 0.05) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of images")
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in self.EXTENSIONS)
        self.paths = [p for p in paths if is_held_out(p.name, share) == held_out]
        if not self.paths:
            raise ValueError(f"{folder} has no {'held-out ' if held_out else ''}images ({', '.join(self.EXTENSIONS)})")

    @staticmethod
    def caption(path: Path) -> str:
        beside = path.with_suffix(".txt")
        if beside.exists():
            return beside.read_text().strip()
        return path.stem.rstrip("0123456789-_ ").replace("_", " ").replace("-", " ")

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        path = self.paths[int(rng.integers(len(self.paths)))]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        side = min(image.size)
        left, top = ((n - side) // 2 for n in image.size)
        square = image.crop((left, top, left + side, top + side))
        resized = [np.asarray(square.resize((s, s), Image.Resampling.BOX)) for s in sizes]
        return self.caption(path), resized

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        return random_crop(self.captioned(rng, (size,))[1][0], crop, rng)
