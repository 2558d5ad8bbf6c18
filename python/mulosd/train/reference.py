"""Features of held-out photos, kept for evaluations that do not have the archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..data.family import PhotoSplit
from ..data.photos import Photos
from ..engine.engine import Engine
from ..engine.family import Family
from ..measure.images import reconstruct
from ..measure.kept_features import FILE, KeptFeatures, bundled, describe
from ..measure.metrics.kid import MIN_SET
from ..measure.readers.lite0 import Lite0Features
from ..measure.references import REAL_SEED

COUNT = 256


def keep_features(photos: Photos, family: Family, *, count: int = COUNT, device: str = "cpu") -> KeptFeatures:
    """Features of held-out photos, in a random order that is the same for every family of the archive.

    Args:
        photos: the archive that the family was trained on.
        family: as it was exported.
        count: photos in each half; where fewer are held out, half of those.
        device: a torch device.

    Raises:
        ValueError: the family was trained on something else, or fewer than 8 photos are held out.
        ImportError: the feature network is missing.
    """
    about, split = describe(family), PhotoSplit.load(family)
    if PhotoSplit.of(photos, split.held_out, split.size) != split or list(photos.names) != about["names"]:
        raise ValueError(
            f"family {family.name!r} was not trained on this archive, or under other names of its classes: give the "
            f"training file that it was exported with"
        )
    held_out = photos.split(True, split.held_out)
    n = min(count, len(held_out) // 2)
    if n < MIN_SET:
        raise ValueError(f"two halves of at least {MIN_SET} photos are needed, {len(held_out)} are held out")
    chosen = np.random.default_rng(REAL_SEED).permutation(held_out)[: 2 * n]
    pictures = np.stack([photos.picture(int(i), split.size) for i in chosen])
    network = Lite0Features(device)
    features = network(pictures)
    rebuilt = network(reconstruct(Engine(family, device=device, dtype="float32"), pictures[n:]))
    classes = tuple(photos.names[photos.classes[i]].split(",")[0] for i in chosen[n:])
    return KeptFeatures(about, features[:n], features[n:], rebuilt, classes)


def add_features(photos: Photos, folder: Path) -> None:
    """Put the features into a family's folder, where enough photos for that are held out.

    A family whose features the package holds already, those of its photos and its tokenizer, does without the file.
    """
    family = Family.load(folder)
    about = describe(family)
    packaged = bundled(about["digest"])
    if packaged.is_file() and not KeptFeatures.load(packaged).differing(about):
        return
    if sum(PhotoSplit.load(family).counts) >= 2 * MIN_SET:
        keep_features(photos, family).save(folder / FILE)
