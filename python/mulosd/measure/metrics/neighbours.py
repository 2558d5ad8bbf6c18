"""Distances to the nearest training image: does a family draw new images, or those that it was trained on?"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHUNK = 512
PIXEL_SIDE = 32


class Neighbours(NamedTuple):
    """For each row its nearest row of another set: the Euclidean distance, float64 [n], and which, int64 [n]."""

    distance: NDArray[np.float64]
    row: NDArray[np.int64]


def nearest_neighbour(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> Neighbours:
    """The nearest row of `b` to each row of `a`, by Euclidean distance.

    Args:
        a: [n, d].
        b: [m, d], m >= 1.

    Raises:
        ValueError: other shapes.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(b):
        raise ValueError(f"neighbours are sought among [n, d] and [m, d] with m >= 1, got {a.shape} and {b.shape}")
    y = np.asarray(b, np.float64)
    squares = (y**2).sum(axis=1)
    distance, index = np.zeros(len(a)), np.zeros(len(a), np.int64)
    for start in range(0, len(a), CHUNK):
        x = np.asarray(a[start : start + CHUNK], np.float64)
        found = (squares - 2 * x @ y.T).argmin(axis=1)
        index[start : start + CHUNK] = found
        # Not from the expanded square, whose cancellation would hide that two rows are equal.
        distance[start : start + CHUNK] = np.sqrt(((x - y[found]) ** 2).sum(axis=1))
    return Neighbours(distance, index)


def nearest_view(views: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> Neighbours:
    """`nearest_neighbour` of images with several views, [n, d] or [views, n, d]: that of the nearest view."""
    found = [nearest_neighbour(view, b) for view in (views if views.ndim == 3 else views[None])]
    best = np.stack([f.distance for f in found]).argmin(axis=0)
    pick = np.arange(len(best))
    return Neighbours(np.stack([f.distance for f in found])[best, pick], np.stack([f.row for f in found])[best, pick])


def directions(features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Features [..., d] at unit length: distances then tell what is seen, not how strongly."""
    x = np.asarray(features, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def pixels(images: NDArray[np.uint8], side: int = PIXEL_SIDE) -> NDArray[np.float64]:
    """Images uint8 [B, H, W, 3], reduced to `side` px -> rows [B, side * side * 3] whose distance is RMS, 0 to 1."""
    small = [np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BOX)) for i in images]
    rows = np.stack(small).reshape(len(images), -1) / 255.0
    return rows / np.sqrt(rows.shape[1])


def memorisation(
    made: NDArray[np.floating[Any]],
    held_out: NDArray[np.floating[Any]],
    training: NDArray[np.floating[Any]],
    *,
    quantile: float = 0.01,
) -> dict[str, Any]:
    """How near made images are to training images, beside images that training never saw.

    Args:
        made: rows of generated images, of `directions` or `pixels`: [n, d], or [views, n, d] where an image counts
            as near if any view of it is, such as its mirror image.
        held_out: rows of held-out real images [m, d], or [views, m, d].
        training: rows of training images [t, d].
        quantile: share of held-out images that count as suspiciously near.

    Returns:
        {"made", "held_out"}: quartiles of the distance to the nearest training image; {"threshold"}: the `quantile`
        of those of held-out images; {"nearer"}: share of made images below it, about `quantile` or less where
        nothing is memorised; {"nearest"}: numbers (made, training) of the nearest pairs, nearest first, at most 16.
    """
    a, b = nearest_view(made, training), nearest_view(held_out, training)
    threshold = float(np.quantile(b.distance, quantile))
    order = np.argsort(a.distance, kind="stable")[:16]
    return {
        "made": np.quantile(a.distance, [0.25, 0.5, 0.75]).tolist(),
        "held_out": np.quantile(b.distance, [0.25, 0.5, 0.75]).tolist(),
        "threshold": threshold,
        "nearer": float((a.distance < threshold).mean()),
        "nearest": [(int(i), int(a.row[i])) for i in order],
    }
