"""`kv_write` by Triton under the interpreter and by the CUDA kernel under the emulator, against the reference."""

from __future__ import annotations

import ctypes
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled import compile_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mulosd.kernels import BackendUnavailable, kv_write

Write = Callable[..., Tensor]
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
POINTERS = ("q", "k", "v", "slots", "rotary", "out", "k_cache", "v_cache", "cache_rows")
STRIDES = ("q", "k", "v", "k_cache", "v_cache")


class KvWriteParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((f"{name}_stride", ctypes.c_int64 * 3) for name in STRIDES),
        ("slot_stride", ctypes.c_int64 * 2),
        *((name, ctypes.c_int) for name in ("batch", "tokens", "heads", "kv_heads", "dim")),
        ("start", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("type", ctypes.c_int),
        ("cache_type", ctypes.c_int),
        ("parts", ctypes.c_int),
    ]


def emulator(library: ctypes.CDLL, width: int) -> Write:
    """The CUDA kernel with packs of `width` elements, with the signature of `kv_write`."""

    def write(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slots: Tensor,
        rotary: Tensor | None,
        k_cache: Tensor,
        v_cache: Tensor,
        start: int | None = None,
        cache_rows: Tensor | None = None,
    ) -> Tensor:
        out = None if rotary is None and start is not None else torch.full(q.shape, math.nan, dtype=q.dtype)
        tensors = (q, k, v, slots if start is None else None, rotary, out, k_cache, v_cache, cache_rows)
        p = KvWriteParams(*(None if t is None else t.data_ptr() for t in tensors))
        for name, tensor in zip(STRIDES, (q, k, v, k_cache, v_cache), strict=True):
            setattr(p, f"{name}_stride", (ctypes.c_int64 * 3)(*tensor.stride()[:3]))
        p.slot_stride = (ctypes.c_int64 * 2)(*slots.stride())
        p.batch, p.tokens, p.heads, p.dim = q.shape
        p.kv_heads, p.size, p.start = k.shape[2], k_cache.shape[1], start or 0
        if rotary is not None:
            p.size = min(p.size, len(rotary))
        p.type, p.cache_type = TYPES[q.dtype], TYPES[k_cache.dtype]
        library.emulate_kv_write(ctypes.byref(p), width)
        return q if out is None else out

    return write


def interpreter(*args: Any, **options: Any) -> Tensor:
    return kv_write(*args, **options, backend="triton")


@pytest.fixture(
    params=[
        pytest.param("triton", marks=pytest.mark.interpreter),
        pytest.param("cuda", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")),
    ]
)
def backend(request: pytest.FixtureRequest) -> Callable[[int], Write]:
    """From the width of a pack, which Triton chooses itself, to a backend."""
    if request.param == "triton":
        return lambda _: interpreter
    library = request.getfixturevalue("library")
    return lambda width: emulator(library, width)


def caches(batch: int, size: int, heads: int, dim: int, dtype: torch.dtype, strided: bool) -> list[Tensor]:
    """Poisoned caches; strided ones are two layers of a cache [B, Hkv, S, layer, D], which leaves gaps of NaN."""
    if strided:
        both = torch.full((batch, heads, size, 2, dim), math.nan, dtype=dtype).permute(3, 0, 2, 1, 4)
        return [both[0], both[1]]
    return [torch.full((batch, size, heads, dim), math.nan, dtype=dtype) for _ in range(2)]


def compare(
    write: Write,
    args: tuple[Any, ...],
    start: int | None,
    dtype: torch.dtype,
    strided: bool,
    size: int,
    cache_rows: Tensor | None = None,
) -> None:
    q, k = args[0], args[1]
    rows = len(q) if cache_rows is None else len(q) + 3
    tolerance = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}
    expected_caches = caches(rows, size, k.shape[2], k.shape[3], dtype, strided)
    got_caches = caches(rows, size, k.shape[2], k.shape[3], dtype, strided)
    expected = kv_write(*args, *expected_caches, start=start, cache_rows=cache_rows, backend="torch")
    got = write(*args, *got_caches, start=start, cache_rows=cache_rows)
    assert got.dtype == q.dtype
    torch.testing.assert_close(got, expected, atol=tolerance[q.dtype], rtol=0)
    atol = max(tolerance[q.dtype], tolerance[dtype])
    for a, b in zip(got_caches, expected_caches, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0, equal_nan=True)
    assert torch.equal(got_caches[1].isnan(), expected_caches[1].isnan())


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    queries=st.integers(1, 4),
    heads=st.sampled_from([(2, 2), (4, 1), (5, 5)]),
    dim=st.sampled_from([8, 16, 20, 6, 64]),
    turn=st.booleans(),
    consecutive=st.booleans(),
    strided=st.booleans(),
    fused=st.booleans(),
    padded=st.sampled_from([0.0, 0.4, 1.0]),
    indexed=st.booleans(),
    dtypes=st.sampled_from([(torch.float32,) * 2, (torch.float16,) * 2, (torch.float32, torch.float16)]),
)
def check_random(
    backend: Callable[[int], Write],
    seed: int,
    batch: int,
    queries: int,
    heads: tuple[int, int],
    dim: int,
    turn: bool,
    consecutive: bool,
    strided: bool,
    fused: bool,
    padded: float,
    indexed: bool,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 9
    sections = (heads[0], heads[1], heads[1])
    whole = torch.randn(batch, queries, sum(sections), dim, generator=generator).to(dtypes[0])
    q, k, v = whole.split(sections, dim=2) if fused else (x.contiguous() for x in whole.split(sections, dim=2))
    start = seed % (size - queries + 1) if consecutive else None
    slots = torch.stack([torch.randperm(size, generator=generator)[:queries] for _ in range(batch)])
    slots[torch.rand(slots.shape, generator=generator) < padded] = -1 - seed % 3
    rotary = torch.randn(size, dim // 2, 2, generator=generator) if turn else None
    width = next(w for w in (8, 4, 2) if dim % w == 0)
    cache_rows = torch.randperm(batch + 3, generator=generator)[:batch] if indexed else None
    compare(backend(width), (q, k, v, slots, rotary), start, dtypes[1], strided, size, cache_rows)


def test_random_cases(backend: Callable[[int], Write]) -> None:
    check_random(backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_table_of_zeros_hides_the_prefix(backend: Callable[[int], Write], dtype: torch.dtype) -> None:
    """Rows with cos = sin = 0, as LlamaGen has for its prefix, make q and k zero and leave v alone."""
    q, k, v = torch.randn(3, 2, 4, 2, 16).to(dtype).unbind(0)
    rotary = torch.randn(6, 8, 2)
    rotary[:3] = 0
    for slots, start in ((torch.tensor([[0, 1, 2, 3], [5, 2, 4, 1]]), None), (torch.arange(4).expand(2, 4), 0)):
        for write in (kv_write, backend(8)):
            keys, values = caches(2, 6, 2, 16, dtype, False)
            out = write(q, k, v, slots, rotary, keys, values, start=start)
            for b in range(2):
                prefix = slots[b] < 3
                assert (out[b, prefix] == 0).all()
                assert (out[b, ~prefix] != 0).all()
                assert (keys[b, slots[b][prefix]] == 0).all()
                assert (keys[b, slots[b][~prefix]] != 0).all()
                assert torch.equal(values[b, slots[b]], v[b])


def test_padding_is_neither_read_nor_written(backend: Callable[[int], Write]) -> None:
    """NaN in padding tokens reaches nothing; a slot past the cache is padding to a device."""
    q, k, v = torch.randn(3, 2, 3, 2, 8).unbind(0)
    slots = torch.tensor([[-1, 0, -7], [-1, -1, -1]])
    for x in (q, k, v):
        x[slots < 0] = math.nan
    for rotary in (torch.randn(4, 4, 2), None):
        for write in (kv_write, backend(8)):
            keys, values = caches(2, 4, 2, 8, torch.float32, False)
            out = write(q, k, v, slots, rotary, keys, values)
            assert (out[slots < 0] == 0).all()
            assert not out.isnan().any()
            assert torch.equal(values[0, 0], v[0, 1])
            assert keys[0, 0].isfinite().all()
            assert keys[0, 1:].isnan().all()
            assert keys[1].isnan().all()
            assert values[1].isnan().all()
    x = torch.randn(1, 1, 1, 8)
    keys, values = caches(1, 2, 1, 8, torch.float32, False)
    assert (backend(8)(x, x, x, torch.tensor([[2]]), None, keys, values) == 0).all()
    assert keys.isnan().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)]
)
@pytest.mark.parametrize(("dim", "width"), [(64, 8), (100, 4), (6, 2)])
def test_bfloat16_by_the_emulator(
    library: ctypes.CDLL, dtypes: tuple[torch.dtype, torch.dtype], dim: int, width: int
) -> None:
    q, k, v = torch.randn(3, 2, 3, 5, dim).to(dtypes[0]).unbind(0)
    slots = torch.tensor([[3, -1, 0], [1, 2, 4]])
    for rotary in (torch.randn(5, dim // 2, 2), None):
        compare(emulator(library, width), (q, k, v, slots, rotary), None, dtypes[1], True, 5)


@pytest.mark.interpreter
def test_many_heads_and_odd_layouts() -> None:
    """More heads than one program takes, a head dimension that is no power of two, elements that lie apart."""
    q = torch.randn(1, 2, 100, 20).mT.contiguous().mT
    k, v = torch.randn(2, 1, 2, 20, 20).unbind(0)
    slots = torch.tensor([[1, 0]])
    compare(interpreter, (q, k, v, slots, torch.randn(3, 10, 2)), None, torch.float32, False, 3)
    x = torch.zeros(1, 1, 1, 3)
    with pytest.raises(BackendUnavailable, match="even"):
        interpreter(x, x, x, torch.zeros(1, 1, dtype=torch.int64), None, x, x)
    table = torch.randn(3, 10, 2, dtype=torch.float64)
    with pytest.raises(BackendUnavailable, match="float32"):
        interpreter(q, k, v, slots, table, *caches(1, 3, 20, 20, torch.float32, False))
    assert (
        interpreter(q[:0], k[:0], v[:0], slots[:0], None, *(c[:0] for c in caches(1, 3, 20, 20, q.dtype, False))).shape[
            0
        ]
        == 0
    )


# float type, head dimension, whether keys turn and slots are given; then the most registers.
COMPILED = [("bf16", 64, True, 64), ("bf16", 128, True, 64), ("fp32", 64, False, 48), ("fp16", 100, True, 64)]


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("dtype", "dim", "full", "registers"), COMPILED)
def test_compiles_without_spills(capability: int, dtype: str, dim: int, full: bool, registers: int) -> None:
    pytest.importorskip("triton")
    from mulosd.kernels.kv_write import triton as module

    kernel = module.kv_write_kernel
    pointers = dict.fromkeys(("q", "k", "v", "k_cache", "v_cache"), f"*{dtype}")
    optional = {"slots": "*i64", "cache_rows": "*i64", "rotary": "*fp32", "out": f"*{dtype}"}
    block_d = 1 << (dim - 1).bit_length()
    constants = {"HEADS": 20, "KV_HEADS": 20, "DIM": dim, "BLOCK_H": module.TILE // block_d, "BLOCK_D": block_d}
    scalars = {n: "i32" for n in kernel.arg_names if n not in pointers and n not in optional and n not in constants}
    if full:
        pointers |= optional
    else:
        constants |= dict.fromkeys(optional)
    built = compile_for(kernel, capability, pointers | scalars, constants, num_warps=4)
    assert built.stack == 0
    assert built.registers <= registers
    assert built.sass["LDG"] >= 1
    assert built.sass["STG"] >= 1
