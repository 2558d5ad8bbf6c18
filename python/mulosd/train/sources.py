"""Where training images and captions come from: composed scenes, photographs, or a folder of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from ..data.photos import Photos, resized
from ..data.scenes import Renderer, is_held_out, sample_scene
from ..engine.paths import expanded
from ..files.images import SUFFIXES, check_images, list_images, read_image
from ..files.texts import read_text

Progress = Callable[[str, int, int], None]


class ImageSource(Protocol):
    """Random images, and captioned images aligned at several sizes."""

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        """One image at `size` px a side, cropped to at most `crop`: uint8 [S, S, 3]."""

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        """A caption and the same image at each size."""


def random_crop(picture: NDArray[np.uint8], crop: int, rng: np.random.Generator, step: int = 8) -> NDArray[np.uint8]:
    """A crop whose corner is a multiple of `step` px; the image itself when it is not larger."""
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


@dataclass(frozen=True)
class Augmentation:
    """How a training image differs each time it is drawn; the default is not at all.

    Args:
        flip: probability of the mirror image.
        area: least share of the image that a random crop keeps, in (0, 1].
        aspect: a crop's sides differ by up to this factor, at least 1.
        colour: brightness, contrast and saturation change by up to this share, in 0..1.
    """

    flip: float = 0.0
    area: float = 1.0
    aspect: float = 1.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.flip <= 1 and 0 < self.area <= 1 and self.aspect >= 1 and 0 <= self.colour <= 1):
            raise ValueError(f"data.augment: flip and colour are in 0..1, area in (0, 1], aspect from 1 on, got {self}")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An image of the same size as a square `image`."""
        side = image.width
        draw = rng.random(5)
        if draw[0] < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.area < 1 or self.aspect > 1:
            length = side * np.sqrt(self.area + (1 - self.area) * draw[1])
            shape = self.aspect ** (draw[2] - 0.5)
            width, height = min(side, length * shape), min(side, length / shape)
            left, top = draw[3] * (side - width), draw[4] * (side - height)
            box = (left, top, left + width, top + height)
            image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
        if self.colour > 0:
            by = 1 + self.colour * (2 * rng.random(3) - 1)
            for enhance, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), by, strict=True
            ):
                image = enhance(image).enhance(float(factor))
        return image


class PhotoSource:
    """Photographs of one split; the caption is the name of the class.

    Args:
        photos: the archive.
        held_out: the held-out split, which is never augmented, instead of the training split.
        share: of images that are held out.
        augmentation: of the training split.

    Raises:
        ValueError: the split is empty.
    """

    def __init__(
        self,
        photos: Photos,
        held_out: bool = False,
        share: float = 0.1,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.photos, self.numbers = photos, photos.split(held_out, share)
        self.augmentation = Augmentation() if held_out or augmentation is None else augmentation
        if not len(self.numbers):
            raise ValueError(f"of {len(photos)} photos none {'is held out' if held_out else 'is left to train on'}")

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        number = int(rng.choice(self.numbers))
        image = self.augmentation(self.photos.image(number), rng)
        # The first name alone: others are for prompts.
        caption = self.photos.names[self.photos.classes[number]].split(",")[0]
        return caption, [resized(image, size) for size in sizes]

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        return random_crop(self.captioned(rng, (size,))[1][0], crop, rng)


class FolderSource:
    """Images of a folder with captions from `NAME.txt` beside each, or from the file name ("a_red_car-3.png").

    Args:
        folder: with images, also in subfolders.
        held_out: the held-out split instead of the training split.
        share: of images that are held out, by a hash of their names.
        captions: read them; without, every caption is empty.
    """

    def __init__(self, folder: Path, held_out: bool = False, share: float = 0.05, captions: bool = True) -> None:
        folder = expanded(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of images")
        self.paths = [p for p in list_images(folder) if is_held_out(p.name, share) == held_out]
        self.captions = captions
        if not self.paths:
            raise ValueError(f"{folder} has no {'held-out ' if held_out else ''}images ({', '.join(sorted(SUFFIXES))})")

    @staticmethod
    def caption(path: Path) -> str:
        beside = path.with_suffix(".txt")
        if beside.exists():
            return read_text(beside).strip()
        return path.stem.rstrip("0123456789-_ ").replace("_", " ").replace("-", " ")

    def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[NDArray[np.uint8]]]:
        path = self.paths[int(rng.integers(len(self.paths)))]
        image = read_image(path)
        side = min(image.size)
        left, top = ((n - side) // 2 for n in image.size)
        square = image.crop((left, top, left + side, top + side))
        caption = self.caption(path) if self.captions else ""
        return caption, [np.asarray(square.resize((s, s), Image.Resampling.BOX)) for s in sizes]

    def image(self, rng: np.random.Generator, size: int, crop: int) -> NDArray[np.uint8]:
        return random_crop(self.captioned(rng, (size,))[1][0], crop, rng)


def check_folder(folder: Path, side: int, captions: bool, progress: Progress | None = None) -> None:
    """Read a folder of training images whole before hours are spent on it.

    Args:
        folder: with images, also in subfolders.
        side: px that the shorter side of each must have: what the largest grid needs.
        captions: read those beside images too.
        progress: called with (what, done, total).

    Raises:
        ValueError: there are no images, or some cannot be used: up to ten are named with the reason.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    check_images(folder, side=side, decode=True, progress=progress, beside=poor_caption if captions else None)


def poor_caption(path: Path) -> str:
    """What is wrong with the caption of an image, or nothing."""
    try:
        caption = FolderSource.caption(path)
    except ValueError as error:
        return f"its caption: {error}"
    return "" if caption else f"its caption {path.with_suffix('.txt').name} is empty"
