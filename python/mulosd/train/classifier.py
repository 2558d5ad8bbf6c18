"""Training of the independent reader of classes: a linear head on Lite0 features of real photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.photos import Photos
from ..engine.atomic import atomic
from ..files.arrays import read_npz
from ..measure.readers.classes import FILE, ClassReader
from ..measure.readers.lite0 import Lite0Features
from ..screen import Screen
from .config import TrainingFile

CHUNK = 256
# Named by what they depend on, so that another archive or network does not find them.
FEATURES = "features-lite0.npz"


def photo_features(
    photos: Photos, path: Path, network: Callable[[NDArray[np.uint8]], NDArray[np.float32]], size: int = 128
) -> NDArray[np.float32]:
    """Features [n, d] of all photos as they are, kept in `path` for the next time.

    Raises:
        ValueError: `path` holds features of another archive.
    """
    digest = np.frombuffer(photos.digest(), np.uint8)
    if path.is_file():
        found = read_npz(path, ("archive", "features"), "a file of kept features; remove it to make it anew")
        if not np.array_equal(found["archive"], digest) or len(found["features"]) != len(photos):
            raise ValueError(f"{path} holds features of another archive; remove it")
        kept: NDArray[np.float32] = found["features"].astype(np.float32)
        return kept
    parts = []
    for start in range(0, len(photos), CHUNK):
        numbers = range(start, min(start + CHUNK, len(photos)))
        parts.append(network(np.stack([photos.picture(i, size) for i in numbers])))
    features = np.concatenate(parts)
    with atomic(path) as file:
        np.savez(file, features=features.astype(np.float16), archive=digest)
    return features.astype(np.float16).astype(np.float32)


def train_classifier(config: TrainingFile, run: Path, *, device: str = "cpu") -> ClassReader:
    """Fit the reader of classes to the training split, measure it on the held-out split and write it to the run.

    The section `classifier` of the training file may set `penalty` and `steps` (`ClassReader.fit`).

    Raises:
        ValueError: the family is not made of photos.
        ImportError: the feature network is missing.
    """
    photos = config.photos()
    run.mkdir(parents=True, exist_ok=True)
    features = photo_features(photos, run / FEATURES, Lite0Features(device))
    train, held_out = (photos.split(held, config.held_out_share) for held in (False, True))
    options = config.options("classifier", ClassReader.fit) if "classifier" in config.values else {}
    reader = ClassReader.fit(features[train], photos.classes[train], photos.names, **options)
    found = reader.accuracy_of(photos.classes[held_out].tolist(), features[held_out])
    mean = float(np.mean(list(found["by_class"].values())))
    reader.figures = {
        "held_out": {k: found[k] for k in ("value", "ci95", "top5", "pictures")} | {"mean_of_classes": mean},
        "training": reader.accuracy_of(photos.classes[train].tolist(), features[train])["value"],
    }
    reader.save(run / FILE)
    Screen().print(
        f"classifier: {found['value']:.3f} of {found['pictures']} held-out photos right ({found['top5']:.3f} among "
        f"five; {mean:.3f} as a mean of classes), {reader.figures['training']:.3f} in training"
    )
    return reader
