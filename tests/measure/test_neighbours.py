"""Nearest training pictures: the search against its definition, and what the report says of copies."""

from __future__ import annotations

import numpy as np
import pytest

from mulosd.measure.metrics.neighbours import directions, memorisation, nearest_neighbour, nearest_view, pixels


def test_the_nearest_row_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(700, 5)).astype(np.float32), rng.normal(size=(90, 5)).astype(np.float32)
    pairs = np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1))
    found = nearest_neighbour(a, b)
    np.testing.assert_array_equal(found.row, pairs.argmin(axis=1))
    np.testing.assert_allclose(found.distance, pairs.min(axis=1), rtol=1e-12)
    far = b + 1e4  # equal rows far from the origin are at distance zero, not at its rounding error
    assert nearest_neighbour(far, far).distance.max() == 0
    views = np.stack([a, a[::-1]])
    best = np.minimum(pairs.min(axis=1), pairs[::-1].min(axis=1))
    np.testing.assert_allclose(nearest_view(views, b).distance, best, rtol=1e-12)
    rows = nearest_view(views, b).row
    np.testing.assert_allclose(np.minimum(pairs[np.arange(700), rows], pairs[::-1][np.arange(700), rows]), best)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        nearest_neighbour(a, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="m >= 1"):
        nearest_neighbour(a, b[:0])


def test_pixel_distance_is_the_rms_of_reduced_pictures() -> None:
    black, gray = np.zeros((1, 64, 64, 3), np.uint8), np.full((1, 64, 64, 3), 51, np.uint8)
    assert nearest_neighbour(pixels(black), pixels(gray)).distance[0] == pytest.approx(0.2)
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 102
    fine = np.repeat(checks[None, :, :, None], 3, axis=3).astype(np.uint8)
    # Detail below 2 px is averaged away before pictures are compared.
    assert nearest_neighbour(pixels(fine), pixels(gray)).distance[0] == pytest.approx(0)


def test_copies_are_nearer_than_new_pictures() -> None:
    rng = np.random.default_rng(1)
    training, held_out, new = (directions(rng.normal(size=(n, 8))) for n in (400, 2000, 2000))
    np.testing.assert_allclose(np.linalg.norm(training, axis=1), 1)
    copied = training[:200] + rng.normal(scale=1e-4, size=(200, 8))
    found = memorisation(copied, held_out, training)
    assert found["nearer"] == 1 and found["made"][2] < found["threshold"] < found["held_out"][0]
    assert all(i == j for i, j in found["nearest"]) and len(found["nearest"]) == 16
    # New pictures: 20 of 2,000 expected below the first percentile; 45 is more than five standard deviations off.
    assert memorisation(new, held_out, training)["nearer"] < 45 / 2000
