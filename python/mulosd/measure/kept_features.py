"""Features of held-out photos as a small file, to compare with where the photos themselves may not be given out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ..data.family import PhotoSplit
from ..engine.atomic import atomic
from ..engine.paths import expanded
from ..files.arrays import read_npz
from ..files.texts import parse_json

if TYPE_CHECKING:
    from torch import nn

    from ..engine.family import Family

FILE = "reference.npz"
NETWORK = "EfficientNet-Lite0"
LEVELS = 255
ARRAYS = ("features", "scale", "classes", "about")


@dataclass(frozen=True)
class KeptFeatures:
    """Features of two disjoint halves of held-out photos, and of the second half through a tokenizer.

    Attributes:
        about: what they are of, see `describe`; a family may compare with them when its own description is the same.
        real: float32 [N, d].
        other: float32 [N, d].
        rebuilt: float32 [N, d], `other` encoded and decoded.
        classes: of `other`, first names.
    """

    about: dict[str, Any]
    real: NDArray[np.float32]
    other: NDArray[np.float32]
    rebuilt: NDArray[np.float32]
    classes: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the file: a feature as a byte, times a scale for each image, the largest of its features being 255.

        Of 256 + 256 photos (0.56 MiB with the reconstructions), each half against the other or against 256 more photos,
        that moved KID-Lite0 and Frechet-Lite0 by less than 0.02 of their standard errors, against float32.

        Raises:
            ValueError: a feature is negative, which those of Lite0, means of ReLU6, never are.
        """
        stacked = np.stack([self.real, self.other, self.rebuilt])
        if (stacked < 0).any():
            raise ValueError("features to be kept are 0 or more, as those of Lite0 are")
        scale = np.maximum(stacked.max(axis=2, keepdims=True), np.finfo(np.float32).tiny) / LEVELS
        with atomic(path) as file:
            np.savez_compressed(
                file,
                features=np.rint(stacked / scale).astype(np.uint8),
                scale=scale.astype(np.float32),
                classes=np.asarray(self.classes),
                about=np.asarray(json.dumps(self.about)),
            )

    @classmethod
    def load(cls, path: Path) -> KeptFeatures:
        """Read what `save` wrote; ValueError for another file."""
        path = expanded(path)
        found = read_npz(path, ARRAYS, "a file of features of photos, which `mulosd train reference` makes")
        try:
            real, other, rebuilt = found["features"].astype(np.float32) * found["scale"]
            about = parse_json(str(found["about"]), f"{path}: about")
            if not isinstance(about, dict) or real.ndim != 2 or len(found["classes"]) != len(other):
                raise ValueError("its arrays do not belong together")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no features of photos: {error}") from error
        return cls(about, real, other, rebuilt, tuple(found["classes"].tolist()))

    def differing(self, about: dict[str, Any]) -> list[str]:
        """In what they differ from the features that a description (`describe`) asks for."""
        return [key for key in about if self.about.get(key) != about[key]]

    @classmethod
    def find(cls, family: Family) -> KeptFeatures:
        """Those to compare a family with: beside its family.json, or else those that ship with the package.

        Raises:
            ValueError: there are none, or those that there are differ in archive, split, classes or tokenizer.
        """
        wanted, seen = describe(family), []
        beside = [] if family.path is None else [family.path / FILE]
        for path in filter(Path.is_file, (*beside, bundled(wanted["digest"]))):
            kept = cls.load(path)
            differing = kept.differing(wanted)
            if not differing:
                return kept
            seen.append(f"{path} differs in {', '.join(differing)}")
        why = f" ({'; '.join(seen)})" if seen else ""
        raise ValueError(
            f"no features of held-out photos are kept for family {family.name!r}{why}: make them with `mulosd train "
            f"reference --config FILE --family DIR`, or give real images to `mulosd evaluate --reference DIR`"
        )


def bundled(digest: str) -> Path:
    """Where the features of an archive are in the package, if they are."""
    return Path(str(files(__package__))) / f"reference-{digest[:12]}.npz"


def describe(family: Family) -> dict[str, Any]:
    """What features must agree in to be compared with a family's images; ValueError for one not made of photos."""
    split = PhotoSplit.load(family)
    return {
        "network": NETWORK,
        "digest": split.digest,
        "held_out": split.held_out,
        "size": split.size,
        "names": family.conditioner.to_dict()["names"],
        "tokenizer": weights_digest(cast("nn.Module", family.tokenizer)),
    }


def weights_digest(module: nn.Module) -> str:
    """A hash of weights in float16, as families store most of them: the same before and after."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().half().contiguous().numpy().tobytes())
    return found.hexdigest()
