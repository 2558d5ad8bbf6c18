"""Seam energy on planted seams: its value is known where the picture is made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mulosd.measure.metrics.seams import BESIDES, BORDERS, edge_sums, seam_energy

GRID, PX = 8, 4


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((GRID, GRID), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def texture(seed: int, detail: np.ndarray | float = 8.0) -> np.ndarray:
    """Noise of equal strength everywhere, or of the given strength for each pixel."""
    noise = np.random.default_rng(seed).normal(0, 1, (GRID * PX, GRID * PX, 3))
    return noise * np.broadcast_to(detail, (GRID * PX, GRID * PX))[..., None] + 128


def to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def pixels(mask: np.ndarray) -> np.ndarray:
    return np.kron(mask, np.ones((PX, PX))).astype(bool)


def test_ramps_give_the_ratio_of_their_steps() -> None:
    # A ramp of 1 a pixel in both directions; the region is lifted by 20, so a border steps 21 on the near sides
    # (up and left) and 19 on the far ones.
    ramp = np.add.outer(np.arange(32), np.arange(32))[..., None].repeat(3, axis=2)
    mask = square(2, 3, 3)
    found = seam_energy([to_bytes(ramp + 20 * pixels(mask)[..., None])], mask[None])
    assert found is not None
    assert found["value"] == pytest.approx(20)
    assert found["relative"] == pytest.approx(20)
    assert (found["borders"], found["beside"]) == (12, 28)


def test_no_seam_is_one_and_a_planted_one_is_seen() -> None:
    masks = np.stack([square(s % 4, s % 5, 3) for s in range(24)])
    plain = [texture(s) for s in range(24)]
    none = seam_energy([to_bytes(p) for p in plain], masks)
    seamed = seam_energy([to_bytes(p + 24 * pixels(m)[..., None]) for p, m in zip(plain, masks, strict=True)], masks)
    assert none is not None
    assert seamed is not None
    for key in ("value", "relative"):
        low, high = none["ci95" if key == "value" else "relative_ci95"]
        assert low < 1 < high
        assert 0.9 < none[key] < 1.1
        assert seamed[key] > 1.8, "noise of deviation 8 differs by 9 on average, with a step of 24 by about 24"
    assert seamed["ci95"][0] > none["ci95"][1]


def test_detail_that_differs_cancels_in_the_relative_measure() -> None:
    # More detail within the region than around it, and no seam.
    masks = np.stack([square(1 + s % 4, 1 + s % 3, 3) for s in range(24)])
    images = [to_bytes(texture(s, np.where(pixels(m), 12.0, 4.0))) for s, m in enumerate(masks)]
    found = seam_energy(images, masks)
    assert found is not None
    # Differences of independent noise have the root of the summed squares of both deviations. Of the 28 boundaries
    # beside the borders, 12 lie within the region.
    inside, outside, across = np.hypot(12, 12), np.hypot(4, 4), np.hypot(12, 4)
    assert found["value"] == pytest.approx(across / ((12 * inside + 16 * outside) / 28), abs=0.05), "1.2"
    assert found["relative"] == pytest.approx(across / ((inside + outside) / 2), abs=0.05), "1.12"


def test_boundaries_are_counted_by_kind() -> None:
    image = to_bytes(texture(0))
    corner = edge_sums(image, square(0, 0, 2))
    assert (corner[BORDERS], corner[BESIDES]) == (4, 8), "the edge of the picture is no border"
    whole = edge_sums(image, square(0, 0, GRID))
    assert (whole[BORDERS], whole[BESIDES]) == (0, 2 * GRID * (GRID - 1))
    assert seam_energy([image], square(0, 0, GRID)[None]) is None
    assert seam_energy([image], square(0, 0, 0)[None]) is None
    alone = edge_sums(image, square(3, 3, 1))
    assert (alone[BORDERS], alone[BESIDES]) == (4, 8), "of the twelve in three by three tokens"
    flipped = edge_sums(image.transpose(1, 0, 2), square(1, 3, 2).T)
    assert flipped == pytest.approx(edge_sums(image, square(1, 3, 2)))


def test_it_checks() -> None:
    with pytest.raises(ValueError, match="multiple of the grid"):
        edge_sums(np.zeros((30, 30, 3), np.uint8), square(0, 0, 2))
    with pytest.raises(ValueError, match="2 px a token"):
        edge_sums(np.zeros((8, 8, 3), np.uint8), square(0, 0, 2))
