"""`expand_islands` by Triton under the interpreter, and by CUDA under the emulator: equal to the reference."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable

import pytest
import torch
from compiled import compile_for
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mulosd.kernels import BackendUnavailable, Expansion, expand_islands, jit

Expand = Callable[[Tensor, int, "int | None"], Expansion]


class IslandParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("rejected", "expanded", "labels", "order", "latest")),
        ("latest_stride", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("images", "height", "width", "radius", "window")),
    ]


def emulator(library: ctypes.CDLL) -> Expand:
    """The CUDA kernel on poisoned outputs, with the signature of `expand_islands`."""

    def expand(rejected: Tensor, radius: int, window: int | None) -> Expansion:
        from mulosd.kernels.expand_islands.cuda import empty_latest

        expanded = torch.full(rejected.shape, 77, dtype=torch.uint8)
        labels, order = (torch.full(rejected.shape, -77, dtype=torch.int32) for _ in range(2))
        latest = empty_latest(rejected).fill_(10**6)
        batch, height, width = rejected.shape
        p = IslandParams(*(t.data_ptr() for t in (rejected, expanded, labels, order, latest)))
        p.latest_stride = latest.stride(0)
        p.images, p.height, p.width = batch, height, width
        p.radius, p.window = min(radius, max(height, width)), 0 if window is None else min(window, width)
        library.emulate_expand_islands(ctypes.byref(p))
        assert ((expanded == 0) | (expanded == 1)).all()
        return Expansion(expanded.bool(), labels, order)

    return expand


def interpreter(rejected: Tensor, radius: int, window: int | None) -> Expansion:
    return expand_islands(rejected, radius, window, backend="triton")


@pytest.fixture(
    params=[
        pytest.param("triton", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")),
    ]
)
def backend(request: pytest.FixtureRequest) -> Expand:
    return interpreter if request.param == "triton" else emulator(request.getfixturevalue("library"))


def compare(expand: Expand, rejected: Tensor, radius: int, window: int | None) -> Expansion:
    expected = expand_islands(rejected, radius, window, backend="torch")
    got = expand(rejected, radius, window)
    for name, a, b in zip(Expansion._fields, got, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    return got


def random_map(seed: int, batch: int, height: int, width: int, density: float) -> Tensor:
    return torch.rand(batch, height, width, generator=torch.Generator().manual_seed(seed)) < density


WINDOWS = st.one_of(st.none(), st.integers(1, 15))


@settings(max_examples=15 if jit.interpreting() else 60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.03, 0.15, 0.3, 0.5]),
    st.sampled_from([0, 0, 0, 1, 2, 20]),
    WINDOWS,
)
@example(0, 1, 1, 1.0, 0, 1)
@example(5, 14, 13, 0.3, 0, 2)
@example(6, 14, 14, 0.4, 0, 20)
def check_random(
    backend: Expand, seed: int, height: int, width: int, density: float, radius: int, window: int | None
) -> None:
    compare(backend, random_map(seed, 2, height, width, density), radius, window)


def test_random_maps(backend: Expand) -> None:
    check_random(backend)


def pattern(picture: str) -> Tensor:
    return torch.tensor([[c == "#" for c in row] for row in picture.split()])


def spiral(size: int) -> Tensor:
    """One island that winds inwards: the longest way for labels to travel, and arms that wait for each other."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    top, left, bottom, right = 0, 0, size - 1, size - 1
    row = col = 0
    while top <= bottom and left <= right:
        mask[top, min(col, left) : right + 1] = True
        mask[top : bottom + 1, right] = True
        mask[bottom, left : right + 1] = True
        mask[top + 2 : bottom + 1, left] = True
        row, col, top, left, bottom, right = row + 2, left, top + 2, left + 2, bottom - 2, right - 2
        if top <= bottom and left <= right:
            mask[top, left - 1] = True
    return mask


def comb(height: int, width: int) -> Tensor:
    """Teeth that meet in the last row alone: one island whose parts look like many until the end."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, ::2] = True
    mask[-1] = True
    return mask


NESTED = """
#########
#.......#
#.##.##.#
#.#...#.#
#.#.#.#.#
#.#...#.#
#.#####.#
#.......#
#####.###
"""


@pytest.mark.parametrize("window", [None, 2, 40])
@pytest.mark.parametrize("name", ["spiral", "comb", "nested", "dots", "full"])
def test_shapes(backend: Expand, name: str, window: int | None) -> None:
    dots = torch.zeros(13, 34, dtype=torch.bool)
    dots[::2, ::2] = True
    masks = {
        "spiral": spiral(17),
        "comb": comb(7, 35),
        "nested": pattern(NESTED),
        "dots": dots,
        "full": torch.ones(7, 33, dtype=torch.bool),
    }
    mask = masks[name]
    result = compare(backend, torch.stack([mask, mask.flip(0), mask.flip(1), mask & False]), 0, window)
    assert int(result.labels[0].max()) == {"dots": 7 * 17, "nested": 3}.get(name, 1)


@pytest.mark.parametrize(("density", "radius", "window"), [(0.02, 1, 3), (0.35, 0, 2)])
def test_a_whole_grid(backend: Expand, density: float, radius: int, window: int) -> None:
    compare(backend, random_map(1, 1, 48, 64, density), radius, window)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("window", [None, 5])
def test_the_largest_grid_by_the_emulator(library: ctypes.CDLL, window: int | None) -> None:
    compare(emulator(library), random_map(2, 1, 128, 128, 0.3), 0, window)
    compare(emulator(library), spiral(128)[None], 0, window)


@pytest.mark.interpreter
def test_larger_grids_are_declined_and_strides_are_free() -> None:
    with pytest.raises(BackendUnavailable, match="128 x 128"):
        interpreter(torch.zeros(1, 2, 129, dtype=torch.bool), 0, None)
    compare(interpreter, random_map(3, 4, 9, 6, 0.2).mT[::2], 1, 2)
    assert interpreter(torch.zeros(0, 3, 3, dtype=torch.bool), 1, 1).order.shape == (0, 3, 3)


# Architecture, grid, whether there is a window, and the most registers a thread.
COMPILED = [
    (90, 16, True, 96),
    (80, 64, True, 128),
    (90, 64, True, 128),
    (100, 64, True, 128),
    (90, 64, False, 96),
    (90, 128, True, 255),
]


@pytest.mark.parametrize(("capability", "side", "windowed", "registers"), COMPILED)
def test_compiles_without_spills(capability: int, side: int, windowed: bool, registers: int) -> None:
    pytest.importorskip("triton")
    from mulosd.kernels.expand_islands import triton as module

    signature = {"rejected": "*i8", "expanded": "*i8", "labels": "*i32", "order": "*i32"}
    signature |= {"radius": "i32", "window": "i32"}
    constants = {"HEIGHT": side, "WIDTH": side, "ISLANDS": side * side // 4, "BLOCK_W": side}
    constants["CHUNK"] = min(module.CHUNK, side * side)
    if windowed:
        signature["latest"] = "*i32"
    else:
        constants["latest"] = None
    built = compile_for(module.expand_islands_kernel, capability, signature, constants, num_warps=8, num_stages=1)
    assert built.stack == 0
    assert built.registers <= registers
    assert built.sass["BAR"] >= 5  # the barriers between writes and reads are still there
