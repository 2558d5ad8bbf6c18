"""The CUDA kernel of attention, compiled for the host and run thread by thread, against the float64 oracle."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import attention_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels.verify_attention import cuda

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "emulator"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class AttentionParams(ctypes.Structure):
    _fields_ = [
        ("pointers", ctypes.c_void_p * 11),
        ("type", ctypes.c_int),
        ("wide_counts", ctypes.c_bool),
        ("factor", ctypes.c_float),
        ("sizes", ctypes.c_int * 9),
        ("strides", ctypes.c_int64 * 15),
    ]


Launcher = Callable[[Sequence[int], Sequence[int], Sequence[int], float, int], None]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    build = tmp_path_factory.mktemp("emulator")
    (build / "mulosd").mkdir()
    for source in (ROOT / "csrc" / "include" / "mulosd").iterdir():
        (build / "mulosd" / source.name).write_text(source.read_text().replace("extern __shared__", "extern"))
    target = build / "kernels.so"
    command = ["g++", "-std=c++17", "-O1", "-fno-strict-aliasing", "-shared", "-fPIC", "-w", f"-I{HERE}", f"-I{build}"]
    done = subprocess.run([*command, str(HERE / "driver.cpp"), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))

    def launch(
        pointers: Sequence[int], shape: Sequence[int], strides: Sequence[int], factor: float, stream: int
    ) -> None:
        arrays = (ctypes.c_void_p * 11)(*pointers), (ctypes.c_int * 9)(*shape[2:]), (ctypes.c_int64 * 15)(*strides)
        params = AttentionParams(arrays[0], shape[0], bool(shape[1]), factor, arrays[1], arrays[2])
        library.emulate_verify_attention(ctypes.byref(params))

    return launch


def check(launcher: Launcher, case: cases.Case, tolerance: float, splits: int | None) -> None:
    expected, expected_lse = cases.oracle(case)
    cases.poison(case)
    assert cuda.decline_shapes(case.q, case.k, case.v, case.scale) is None
    args = (*case.tensors(), *case.options().values(), splits)
    out, lse = cuda.launch(*args, 4, launcher, 0)
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
        scale=0.4,
    )
    check(launcher, case, 5e-6, splits)


@pytest.mark.parametrize("dim", [64, 96, 100, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(launcher: Launcher, dim: int, dtype: torch.dtype) -> None:
    case = cases.draw(dim, batch=1, queries=5, prefix=70, heads=(4, 2), dim=dim, mask="random", dtype=dtype)
    check(launcher, case, 2e-3 if dtype == torch.float16 else 2e-2, 2)


def test_more_draft_keys_than_one_word(launcher: Launcher) -> None:
    """Sixteen rows a key head is the most that `decline` lets through; the kernel itself knows no limit."""
    case = cases.draw(5, batch=1, queries=16, prefix=3, heads=(1, 1), dim=8, mask="random", layout="by head")
    check(launcher, case, 5e-6, 1)
    case = cases.draw(6, batch=1, queries=37, prefix=30, heads=(1, 1), dim=8, mask="random")
    expected, _ = cases.oracle(case)
    out, _ = cuda.launch(*case.tensors(), *case.options().values(), 1, 4, launcher, 0)
    np.testing.assert_allclose(out.double().numpy(), expected, atol=5e-6, rtol=0)


def test_counts_of_both_widths(launcher: Launcher) -> None:
    for dtype in (torch.int32, torch.int64):
        case = cases.draw(7, queries=4, prefix=8, dim=8, mask="ones")
        case.counts = torch.tensor([4, 1], dtype=dtype)
        check(launcher, case, 5e-6, None)
