"""Expansion, labels and order against scipy.ndimage and a step-by-step simulation of the readiness rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mulosd.kernels import expand_islands

Map = tuple[int, int, int, float]
MAPS = st.tuples(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.03, 0.15, 0.7]))


def draw(case: Map, batch: int = 2) -> np.ndarray:
    seed, height, width, density = case
    return np.random.default_rng(seed).random((batch, height, width)) < density


def scipy_expansion(rejected: np.ndarray, radius: int) -> np.ndarray:
    grown = ndimage.maximum_filter(rejected.astype(int), size=2 * radius + 1, mode="constant").astype(bool)
    flat = rejected.ravel()
    first = int(flat.argmax()) if flat.any() else flat.size
    grown.ravel()[:first] = False
    return grown


def simulated_order(labels: np.ndarray, window: int) -> np.ndarray:
    """Step by step, straight from the rule: collect every ready cell, then mark them all done."""
    order = np.full(labels.shape, -1)
    pending = {(int(r), int(c)) for r, c in np.argwhere(labels)}
    step = 0
    while pending:
        ready = [
            (r, c)
            for r, c in pending
            if (r, c - 1) not in pending
            and not any(vr < r and vc < c + window and labels[vr, vc] == labels[r, c] for vr, vc in pending)
        ]
        for cell in ready:
            order[cell] = step
            pending.discard(cell)
        step += 1
    return order


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(0, 14))
def test_expansion_and_labels_by_scipy(case: Map, radius: int) -> None:
    rejected = draw(case)
    result = expand_islands(torch.from_numpy(rejected), radius)
    for image in range(2):
        expanded = scipy_expansion(rejected[image], radius)
        np.testing.assert_array_equal(result.expanded[image].numpy(), expanded)
        labels, _ = ndimage.label(expanded, np.ones((3, 3)))
        np.testing.assert_array_equal(result.labels[image].numpy(), renumber(labels))


def renumber(labels: np.ndarray) -> np.ndarray:
    """Numbers 1.. by raster order of first cells, which the oracle does not promise."""
    names: dict[int, int] = {0: 0}
    return np.array([names.setdefault(int(v), len(names)) for v in labels.ravel()]).reshape(labels.shape)


SNAKE = [
    "#########",
    "........#",
    "#########",
    "#........",
    "#.#######",
    "#.#.....#",
    "#.#.###.#",
    "#.#####.#",
    "#.......#",
]
TWO = ["#.#.#", "#.#.#", "##..#"]


@pytest.mark.parametrize("picture", [SNAKE, [line[::-1] for line in SNAKE], SNAKE[::-1], TWO])
def test_labels_of_winding_islands(picture: list[str]) -> None:
    mask = np.array([[c == "#" for c in line] for line in picture])
    from mulosd.kernels.expand_islands.reference import label

    expected, _ = ndimage.label(mask, np.ones((3, 3)))
    np.testing.assert_array_equal(label(torch.from_numpy(mask)[None])[0].numpy(), renumber(expected))


@settings(max_examples=60, deadline=None)
@given(MAPS, st.integers(0, 3), st.integers(1, 14))
@example((1, 8, 8, 0.15), 1, 2)
def test_order_by_simulation(case: Map, radius: int, window: int) -> None:
    result = expand_islands(torch.from_numpy(draw(case)), radius, window)
    for image in range(2):
        labels = result.labels[image].numpy()
        np.testing.assert_array_equal(result.order[image].numpy(), simulated_order(labels, window))


@settings(max_examples=30, deadline=None)
@given(MAPS, st.integers(0, 3))
def test_serial_order_is_the_raster_rank(case: Map, radius: int) -> None:
    result = expand_islands(torch.from_numpy(draw(case)), radius)
    for expanded, order in zip(result.expanded, result.order, strict=True):
        assert order[expanded].tolist() == list(range(int(expanded.sum())))
        assert (order[~expanded] == -1).all()


@settings(max_examples=30, deadline=None)
@given(MAPS, st.integers(0, 3))
def test_wide_window_finishes_rows_in_turn(case: Map, radius: int) -> None:
    """Rows of an island never overlap in time, and an island without gaps inside its rows goes in raster order."""
    rejected = torch.from_numpy(draw(case))
    result = expand_islands(rejected, radius, rejected.shape[2])
    for labels, order in zip(result.labels.numpy(), result.order.numpy(), strict=True):
        for island in range(1, int(labels.max()) + 1):
            rows = [order[r][labels[r] == island] for r in range(len(labels)) if (labels[r] == island).any()]
            assert all(above.max() < below.min() for above, below in itertools.pairwise(rows))
            if all(np.diff(np.nonzero(line == island)[0]).max(initial=1) == 1 for line in labels):
                assert np.concatenate(rows).tolist() == list(range(sum(len(row) for row in rows)))


@settings(max_examples=30, deadline=None)
@given(MAPS)
def test_grows_with_radius_and_with_rejections(case: Map) -> None:
    rejected = torch.from_numpy(draw(case))
    more = rejected | torch.from_numpy(draw((case[0] + 1, *case[1:])))
    for radius in range(4):
        here = expand_islands(rejected, radius).expanded
        assert (here <= expand_islands(rejected, radius + 1).expanded).all()
        assert (here <= expand_islands(more, radius).expanded).all()
    assert torch.equal(expand_islands(rejected, 0).expanded, rejected)


@pytest.mark.parametrize(("height", "width", "window"), [(8, 8, 2), (8, 8, 1), (5, 9, 4), (16, 16, 3), (1, 7, 2)])
def test_full_grid_takes_the_known_number_of_steps(height: int, width: int, window: int) -> None:
    result = expand_islands(torch.ones(1, height, width, dtype=torch.bool), 0, window)
    assert int(result.order.max()) + 1 == width + (height - 1) * window


def test_known_picture() -> None:
    """One rejected cell in the middle of a row, radius 1: its own row starts at it, the next one is whole."""
    rejected = torch.zeros(1, 4, 5, dtype=torch.bool)
    rejected[0, 1, 2] = True
    result = expand_islands(rejected, 1, 1)
    assert result.expanded[0].int().tolist() == [[0] * 5, [0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5]
    assert result.order[0].tolist() == [[-1] * 5, [-1, -1, 0, 1, -1], [-1, 0, 1, 2, -1], [-1] * 5]


def test_islands_of_one_step_order_run_together() -> None:
    rejected = torch.zeros(1, 3, 7, dtype=torch.bool)
    rejected[0, 0, [0, 6]] = True
    result = expand_islands(rejected, 1, 7)
    assert result.labels[0].tolist() == [[1, 1, 0, 0, 0, 2, 2]] * 2 + [[0] * 7]
    assert result.order[0, 0, 0] == 0
    assert result.order[0, 0, 5] == 0


def test_nothing_rejected_and_images_apart() -> None:
    rejected = torch.zeros(2, 3, 3, dtype=torch.bool)
    rejected[1, 2, 2] = True
    result = expand_islands(rejected, 5, 2)
    assert not result.expanded[0].any()
    assert (result.order[0] == -1).all()
    assert result.expanded[1].sum() == 1  # every cell but the last comes before the first rejection
    assert expand_islands(torch.zeros(0, 3, 3, dtype=torch.bool), 1, 1).order.shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("rejected", "radius", "window", "message"),
    [
        (torch.zeros(1, 2, 2), 0, None, "bool"),
        (torch.zeros(2, 2, dtype=torch.bool), 0, None, r"\[B, H, W\]"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), -1, None, "radius"),
        (torch.zeros(1, 2, 2, dtype=torch.bool), 0, 0, "window"),
    ],
)
def test_errors(rejected: torch.Tensor, radius: int, window: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_islands(rejected, radius, window)
