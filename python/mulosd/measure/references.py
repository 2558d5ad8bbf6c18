"""Real images to compare with: held-out ones of what a family was trained on, or a folder of one's own."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..data.family import scene_config, sprites
from ..data.scenes import Renderer, scenes
from ..engine.paths import expanded
from ..files.images import SUFFIXES, check_files, list_images, read_image
from .images import ImageSet
from .kept_features import KeptFeatures
from .prompts import made_of

if TYPE_CHECKING:
    from ..engine.family import Family

# The real images must not be those of the prompts, which are drawn with the plain seed.
REAL_SEED = 1_000_003


@dataclass(frozen=True)
class Reference:
    """Real images in two disjoint halves, or their features alone.

    Attributes:
        name: what they are, in words.
        real: what images are compared with.
        other: more of the same: they stand in for a decoder that makes no mistake.
        prompts: of `other`, one each; None where they have none.
        rebuilt: `other` through the family's tokenizer; None where it is made of the images of `other`.
        note: what a reader of the figures should know of it, or None.
    """

    name: str
    real: ImageSet
    other: ImageSet
    prompts: list[str] | None = None
    rebuilt: ImageSet | None = None
    note: str | None = None


def held_out_scenes(family: Family, count: int, seed: int) -> Reference:
    """Renders of held-out scenes, `count` in each half; ValueError for a family that is not made of scenes."""
    config = scene_config(family)
    renderer = Renderer(config, sprites(family))
    drawn = list(islice(scenes(config, seed + REAL_SEED, config.held_out > 0), 2 * count))
    images = np.stack([renderer.render(scene, family.image_sizes[-1]) for scene in drawn])
    captions = [scene.caption for scene in drawn[count:]]
    halves = ImageSet(images[:count]), ImageSet(images[count:])
    return Reference(f"{count} held-out scenes of {family.name}", *halves, captions)


def held_out_photos(family: Family, count: int, seed: int) -> Reference:
    """Kept features of held-out photos, up to `count` in each half; they are the same for every seed.

    Raises:
        ValueError: there is no file of features that is of the family's archive, classes and tokenizer.
    """
    kept = KeptFeatures.find(family)
    real, other, rebuilt = (ImageSet(features=part[:count]) for part in (kept.real, kept.other, kept.rebuilt))
    name = f"{len(real)} held-out photos of {family.name}, kept as features"
    fewer = f"{count} real images were asked for, but features of {len(real)} are kept: those are compared with"
    return Reference(name, real, other, list(kept.classes[:count]), rebuilt, fewer if len(real) < count else None)


def builtin_reference(family: Family, count: int, seed: int = 0) -> Reference:
    """Held-out images of what a family was trained on.

    Args:
        family: a loaded family.
        count: images in each half; where fewer are kept, those.
        seed: of the draw.

    Raises:
        ValueError: there are none.
    """
    return (held_out_photos if made_of(family) == "photos" else held_out_scenes)(family, count, seed)


def folder_reference(folder: Path, count: int, size: int, seed: int = 0) -> Reference:
    """Images of a folder and its subfolders: the middle square of each, resized.

    Args:
        folder: with PNG, JPEG, WebP, BMP or TIFF files.
        count: images of the first half; as many more as there are, up to `count`, make the second.
        size: side in px.
        seed: of the choice.

    Raises:
        ValueError: no such folder, fewer than `count` images, or a file that is no image.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise ValueError(f"--reference {folder}: there is no such folder; give one with images, or 'builtin'")
    files = list_images(folder)
    if len(files) < count:
        raise ValueError(
            f"--reference {folder} holds {len(files)} images ({', '.join(sorted(SUFFIXES))}), {count} are needed: "
            f"add some, or ask for fewer with --real"
        )
    random.Random(seed).shuffle(files)
    # All that is wrong is told at once, before anything is drawn.
    check_files(folder, files[: 2 * count], ratio=math.inf, decode=True)
    images = np.stack([middle_square(file, size) for file in files[: 2 * count]])
    halves = ImageSet(images[:count]), ImageSet(images[count:])
    return Reference(f"{count} of {len(files)} images of {folder}", *halves)


def middle_square(file: Path, size: int) -> NDArray[np.uint8]:
    """The middle square of an image as uint8 [size, size, 3]; ValueError when it cannot be read."""
    return np.asarray(ImageOps.fit(read_image(file), (size, size), Image.Resampling.LANCZOS), np.uint8)
