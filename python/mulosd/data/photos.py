"""An archive of labelled photographs: one .npz file of compressed images, read as they are asked for."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files.arrays import read_npz
from ..files.images import reason
from .scenes import is_held_out

FORMATS = ("WEBP", "PNG", "JPEG")
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
        found = read_npz(path, KEYS, "an archive of photos (.npz)")
        data, offsets, label, stored = (found[key] for key in KEYS)
        kinds = ((data, "u", 1), (offsets, "iu", 1), (label, "iu", 1), (stored, "U", 1))
        if any(array.dtype.kind not in kind or array.ndim != ndim for array, kind, ndim in kinds):
            raise ValueError(f"{path} is no archive of photos: its arrays are of other types or shapes")
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
        if (
            offsets.shape != (len(label) + 1,)
            or offsets[-1] > len(data)
            or (np.diff(offsets.astype(np.int64)) < 0).any()
        ):
            raise ValueError(f"{path} is no archive of photos: {len(label)} labels, {len(offsets)} offsets")
        if len(label) and not 0 <= label.min() <= label.max() < len(stored):
            raise ValueError(f"{path} is no archive of photos: labels go to {label.max()}, of {len(stored)} classes")
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
        try:
            return Image.open(io.BytesIO(self.encoded(i)), formats=FORMATS).convert("RGB")
        except Exception as error:  # decoders of damaged files raise whatever comes
            raise ValueError(f"photo {i} of the archive cannot be read as an image: {reason(error)}") from error

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
