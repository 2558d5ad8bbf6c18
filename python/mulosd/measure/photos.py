"""The judge of class-conditional photographs: KID-Lite0, class accuracy, and distance to the training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.photos import Photos
from .images import psnr, reconstruct
from .metrics.kid import kid
from .metrics.neighbours import directions, memorisation, pixels
from .readers.classes import ClassReader

if TYPE_CHECKING:
    from ..engine.engine import Engine

CHUNK = 16
Network = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class PhotoJudge:
    """Judges images against the held-out split of an archive.

    Args:
        photos: the archive that the family was trained on.
        features: Lite0 features of all of it [n, d].
        share: of images that were held out.
        reader: of classes, or None for no class accuracy.
        network: images uint8 [B, H, W, 3] to features.
        size: side of the judged images in px.
    """

    def __init__(
        self,
        photos: Photos,
        features: NDArray[np.float32],
        share: float,
        reader: ClassReader | None,
        network: Network,
        size: int = 128,
    ) -> None:
        self.photos, self.features, self.reader, self.network, self.size = photos, features, reader, network, size
        self.training, self.held_out = photos.split(False, share), photos.split(True, share)

    def drawn(self, n: int, seed: int = 0) -> NDArray[np.int64]:
        """`n` different held-out images: classes come as often as among real ones; ValueError for too many."""
        if not 2 <= n <= len(self.held_out):
            raise ValueError(f"2 to {len(self.held_out)} images can be judged, as many as are held out; got {n}")
        chosen: NDArray[np.int64] = np.random.default_rng(seed).permutation(self.held_out)[:n]
        return chosen

    def real(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Photographs uint8 [B, S, S, 3]."""
        return np.stack([self.photos.picture(int(i), self.size) for i in numbers])

    def report(self, classes: NDArray[np.int64], images: NDArray[np.uint8]) -> dict[str, Any]:
        """Figures of generated images, uint8 [B, S, S, 3], of classes int64 [B].

        Returns:
            {"kid"}: against all held-out photos; {"kid_real"}: of one half of those against the other, the zero;
            {"accuracy"} and {"accuracy_real"}: of the reader of classes, on the images and on held-out photos;
            {"memorisation"}: see `memorisation`, by features and by pixels, every image and its mirror image. Numbers
            of training images are those of the archive.
        """
        real = self.features[self.held_out]
        half = np.random.default_rng(0).permutation(len(real))
        held = self.real(self.held_out)
        made = np.stack([self.network(images), self.network(mirrored(images))])
        known = np.stack([real, self.network(mirrored(held))])
        rows = {
            "features": (directions(made), directions(known), directions(self.features[self.training])),
            "pixels": (both(images), both(held), pixels(self.real(self.training))),
        }
        found = {name: memorisation(*sets) for name, sets in rows.items()}
        for figures in found.values():
            figures["nearest"] = [(i, int(self.training[j])) for i, j in figures["nearest"]]
        return {
            "pictures": len(images),
            "kid": kid(real, made[0]),
            "kid_real": kid(real[half[::2]], real[half[1::2]]),
            "accuracy": None if self.reader is None else self.reader.accuracy_of(classes.tolist(), made[0]),
            "accuracy_real": None if self.reader is None else self.reader.figures.get("held_out"),
            "memorisation": found,
        }

    def reconstruction(self, engine: Engine, numbers: NDArray[np.int64]) -> dict[str, Any]:
        """{"kid", "psnr"} of held-out photos through the family's tokenizer, the best that its tokens can show."""
        images = self.real(numbers)
        out = reconstruct(engine, images)
        others = np.setdiff1d(self.held_out, numbers)
        return {
            # Against other photos than those that were rebuilt: paired sets would look nearer than they are.
            "kid": kid(self.features[others], self.network(out)) if len(others) >= CHUNK else None,
            "psnr": psnr(out, images),
        }


def mirrored(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images[:, :, ::-1])


def both(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`pixels` of images and of their mirror images [2, B, d]."""
    return np.stack([pixels(images), pixels(mirrored(images))])


def in_words(report: dict[str, Any]) -> list[str]:
    """The lines that tell what `PhotoJudge.report`, with the `reconstruction` of it, found."""
    accuracy, real, rebuilt = report["accuracy"], report["accuracy_real"], report["reconstruction"]
    lines = [f"KID-Lite0 x 1000  {report['kid']['value']:.1f} +- {report['kid']['std']:.1f}, real photos "]
    lines[0] += f"{report['kid_real']['value']:.1f}"
    if rebuilt["kid"] is not None:
        lines[0] += f", through the tokenizer {rebuilt['kid']['value']:.1f} ({rebuilt['psnr']:.1f} dB)"
    if accuracy is not None:
        lines.append(f"class accuracy    {accuracy['value']:.3f} ({accuracy['top5']:.3f} among five)")
        lines[-1] += f", real photos {real['value']:.3f}" if real else ""
    for name, found in report["memorisation"].items():
        lines.append(
            f"nearest training image by {name}: median {found['made'][1]:.3f}, held-out photos "
            f"{found['held_out'][1]:.3f}; {found['nearer']:.1%} nearer than all but 1 % of those"
        )
    return lines
