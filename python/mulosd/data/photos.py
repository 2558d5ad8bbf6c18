"""An archive of labelled photographs: one .npz file of compressed images, read as they are asked for."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .scenes import is_held_out

KEYS = ("data", "offs", "label", "classes")


@dataclass(frozen=True)
class Photos:
    """Photographs with their classes.

    Args:
        data: uint8, the image files one after the other (WebP, PNG, JPEG).
        offsets: int64 [n + 1], where each begins and the last one ends.
        classes: int64 [n].
        names: of the classes, synonyms separated by ", ".
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    classes: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, names: Mapping[str, str] | None = None) -> Photos:
        """Read an archive with the arrays `data`, `offs`, `label` and `classes`.

        Args:
            path: the .npz file.
            names: class of the archive -> the name that prompts use; others lose their underscores. Classes that get
                the same name become one.

        Raises:
            ValueError: no such file, not such an archive, or a name for a class that it lacks.
        """
        if not path.is_file():
            raise ValueError(f"there is no archive of photos {path}")
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is no archive of photos: it is no .npz file")
        with np.load(path, allow_pickle=False) as opened:
            missing = [key for key in KEYS if key not in opened.files]
            if missing:
                raise ValueError(f"{path} is no archive of photos: it lacks the arrays {missing}")
            data, offsets, label, stored = (opened[key] for key in KEYS)
        given = dict(names or {})
        unknown = sorted(set(given) - set(stored.tolist()))
        if unknown:
            raise ValueError(f"data.names: {path} has no classes {unknown}; it has {', '.join(stored.tolist())}")
        shown = [given.get(c, c.replace("_", " ").lower()) for c in stored.tolist()]
        kept = sorted(set(shown))
        table = np.asarray([kept.index(name) for name in shown], np.int64)
        first = [name.split(",")[0].strip() for name in kept]
        twice = sorted({name for name in first if first.count(name) > 1})
        if twice:
            raise ValueError(
                f"data.names: several classes are called {', '.join(twice)}; give those the very same names "
                f"to make one class of them, or others to tell them apart"
            )
        if offsets.shape != (len(label) + 1,) or offsets[-1] > len(data):
            raise ValueError(f"{path} is no archive of photos: {len(label)} labels, {len(offsets)} offsets")
        return cls(data, offsets.astype(np.int64), table[label], tuple(kept))

    def __len__(self) -> int:
        return len(self.classes)

    def encoded(self, i: int) -> bytes:
        """The file of an image."""
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def digest(self) -> bytes:
        """A hash of all images, 32 bytes."""
        return hashlib.sha256(self.data.tobytes()).digest()

    def image(self, i: int) -> Image.Image:
        """An image as RGB."""
        return Image.open(io.BytesIO(self.encoded(i))).convert("RGB")

    def picture(self, i: int, size: int) -> NDArray[np.uint8]:
        """An image as it is, at `size` px a side: uint8 [S, S, 3]."""
        return resized(self.image(i), size)

    def split(self, held_out: bool, share: float) -> NDArray[np.int64]:
        """Numbers of the images of a split, by a hash of their files: copies of an image fall into the same one."""
        chosen = [
            i for i in range(len(self)) if is_held_out(hashlib.sha256(self.encoded(i)).hexdigest(), share) == held_out
        ]
        return np.asarray(chosen, np.int64)


def resized(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """A square image at `size` px a side: by area downwards, so that sizes stay aligned, bicubic upwards."""
    if image.width == size:
        return np.asarray(image)
    how = Image.Resampling.BOX if size < image.width else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size, size), how))
