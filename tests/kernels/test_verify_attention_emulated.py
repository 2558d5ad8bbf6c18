"""The CUDA kernels of attention, compiled for the host and run thread by thread, against the float64 oracle.

One row a key head, and up to 16 that tensor cores cannot take, go through the scalar kernel; all others through tensor
cores, whose instructions the emulator has too.
"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Sequence

import attention_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels.verify_attention import cuda
from mulosd.kernels.verify_attention.call import Call

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class AttentionParams(ctypes.Structure):
    _fields_ = [
        ("pointers", ctypes.c_void_p * 12),
        ("type", ctypes.c_int),
        ("wide_counts", ctypes.c_bool),
        ("tensor_cores", ctypes.c_bool),
        ("factor", ctypes.c_float),
        ("sizes", ctypes.c_int * 9),
        ("strides", ctypes.c_int64 * 15),
    ]


Launcher = Callable[[Sequence[int], Sequence[int], Sequence[int], float, int], None]


@pytest.fixture(scope="module")
def launcher(library: ctypes.CDLL) -> Launcher:
    def launch(
        pointers: Sequence[int], shape: Sequence[int], strides: Sequence[int], factor: float, stream: int
    ) -> None:
        arrays = (ctypes.c_void_p * 12)(*pointers), (ctypes.c_int * 9)(*shape[3:]), (ctypes.c_int64 * 15)(*strides)
        params = AttentionParams(arrays[0], shape[0], bool(shape[1]), bool(shape[2]), factor, arrays[1], arrays[2])
        library.emulate_verify_attention(ctypes.byref(params))

    return launch


def check(launcher: Launcher, case: cases.Case, tolerance: float, splits: int | None, processors: int = 4) -> None:
    expected, expected_lse = cases.oracle(case)
    cases.poison(case)
    call = Call(*case.tensors(), **case.options(), splits=splits)
    assert cuda.decline_shapes(call) is None
    out, lse = cuda.launch(call, processors, launcher, 0)
    assert out.dtype == case.q.dtype
    np.testing.assert_allclose(out.double().numpy(), expected, atol=tolerance, rtol=0)
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, atol=1e-5, rtol=1e-5)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    queries=st.sampled_from([1, 3, 4, 5]),
    prefix=st.sampled_from([0, 1, 63, 100]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dim=st.sampled_from([4, 32, 64, 100]),
    mask=st.sampled_from(cases.MASKS),
    scattered=st.booleans(),
    some_valid=st.booleans(),
    ragged=st.booleans(),
    indexed=st.booleans(),
    splits=st.sampled_from([None, 1, 2]),
)
def test_draft_blocks(
    launcher: Launcher,
    seed: int,
    queries: int,
    prefix: int,
    heads: tuple[int, int],
    dim: int,
    mask: str,
    scattered: bool,
    some_valid: bool,
    ragged: bool,
    indexed: bool,
    splits: int | None,
) -> None:
    case = cases.draw(
        seed,
        queries=queries,
        prefix=prefix,
        heads=heads,
        dim=dim,
        mask=mask,
        scattered=scattered,
        some_valid=some_valid,
        ragged=ragged,
        indexed=indexed,
        scale=0.4,
    )
    check(launcher, case, 5e-6, splits)


@pytest.mark.parametrize("dim", [64, 96, 100, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(launcher: Launcher, dim: int, dtype: torch.dtype) -> None:
    # A scale below zero keeps the call from tensor cores.
    case = cases.draw(dim, batch=1, queries=5, prefix=70, heads=(4, 2), dim=dim, mask="random", dtype=dtype, scale=-0.1)
    assert not cuda.tile_of(Call(*case.tensors(), **case.options(), splits=2)).tensor_cores
    check(launcher, case, 2e-3 if dtype == torch.float16 else 2e-2, 2)


def test_counts_of_both_widths(launcher: Launcher) -> None:
    for dtype in (torch.int32, torch.int64):
        case = cases.draw(7, queries=4, prefix=8, dim=8, mask="ones")
        case.counts = torch.tensor([4, 1], dtype=dtype)
        check(launcher, case, 5e-6, None)


TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@settings(max_examples=24, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    queries=st.sampled_from([2, 5, 17, 33, 65, 70]),
    prefix=st.sampled_from([0, 1, 63, 64, 130]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dim=st.sampled_from([4, 64, 88, 96, 100, 128]),
    mask=st.sampled_from(cases.MASKS),
    scattered=st.booleans(),
    some_valid=st.booleans(),
    ragged=st.booleans(),
    indexed=st.booleans(),
    splits=st.sampled_from([None, 1, 2, 3]),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_tensor_cores(
    launcher: Launcher,
    seed: int,
    queries: int,
    prefix: int,
    heads: tuple[int, int],
    dim: int,
    mask: str,
    scattered: bool,
    some_valid: bool,
    ragged: bool,
    indexed: bool,
    splits: int | None,
    dtype: torch.dtype,
) -> None:
    case = cases.draw(
        seed,
        queries=queries,
        prefix=prefix,
        heads=heads,
        dim=dim,
        mask=mask,
        scattered=scattered,
        some_valid=some_valid,
        ragged=ragged,
        indexed=indexed,
        dtype=dtype,
    )
    assert cuda.tile_of(Call(*case.tensors(), **case.options(), splits=splits)).tensor_cores
    check(launcher, case, TOLERANCE[dtype], splits)
