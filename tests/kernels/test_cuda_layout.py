"""`kv_write` and `expand_islands` on a device: every backend against the reference on the host."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mulosd.kernels import expand_islands, jit, kv_write, masks, native

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}


def need(backend: str) -> None:
    reason = (native if backend == "cuda" else jit).unusable()
    if reason is not None:
        pytest.skip(reason)


def tokens(batch: int, queries: int, heads: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(queries)
    q, k, v = torch.randn(3, batch, queries, heads, dim, generator=generator).to(dtype).unbind(0)
    slots = torch.stack([torch.randperm(40, generator=generator)[:queries] for _ in range(batch)])
    slots[:, queries // 2] = -1
    table = torch.randn(40, dim // 2, 2, generator=generator)
    table[:3] = 0
    return q, k, v, slots, table


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("cache_dtype", list(TOLERANCE))
@pytest.mark.parametrize(("heads", "dim"), [(20, 64), (3, 100), (32, 128), (2, 6)])
def test_kv_write(backend: str, dtype: torch.dtype, cache_dtype: torch.dtype, heads: int, dim: int) -> None:
    need(backend)
    q, k, v, slots, table = tokens(2, 17, heads, dim, dtype)
    for rotary in (table, None):
        for start in (None, 5):
            results = []
            for device, name in (("cpu", "torch"), ("cuda", backend)):
                # Two layers of one cache, heads before slots: strided views with gaps.
                both = torch.full((2, heads, 40, 2, dim), math.nan, dtype=cache_dtype, device=device)
                caches = both.permute(3, 0, 2, 1, 4)
                moved = [None if t is None else t.to(device) for t in (q, k, v, slots, rotary)]
                out = kv_write(*moved, caches[0], caches[1], start=start, backend=name)  # type: ignore[arg-type]
                results.append((out.cpu(), both.cpu()))
            tolerance = max(TOLERANCE[dtype], TOLERANCE[cache_dtype])
            for got, want in zip(results[1], results[0], strict=True):
                torch.testing.assert_close(got, want, atol=tolerance, rtol=0, equal_nan=True)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 33), (32, 32), (64, 64), (128, 128), (128, 5)])
@pytest.mark.parametrize("window", [None, 1, 3, 1000])
def test_expand_islands(backend: str, height: int, width: int, window: int | None) -> None:
    need(backend)
    generator = torch.Generator().manual_seed(height * width)
    for density, radius in ((0.0, 1), (0.02, 1), (0.35, 0), (0.5, 0), (0.01, 200)):
        rejected = torch.rand(5, height, width, generator=generator) < density
        expected = expand_islands(rejected, radius, window)
        # Chaotic iterations may go right once by luck.
        for _ in range(3):
            got = expand_islands(rejected.cuda(), radius, window, backend=backend)
            for a, b in zip(got, expected, strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_replay_from_a_graph(backend: str) -> None:
    """Captured once, replayed on other contents: nothing waits for the device or keeps a value of the capture."""
    need(backend)
    q, k, v, slots, table = (t.cuda() for t in tokens(2, 9, 4, 64, torch.float16))
    caches = [torch.zeros(2, 40, 4, 64, dtype=torch.float16, device="cuda") for _ in range(2)]
    rejected = torch.zeros(2, 20, 20, dtype=torch.bool, device="cuda")
    parents = torch.zeros(9, dtype=torch.int64, device="cuda") - 1

    def step() -> tuple[Tensor, ...]:
        out = kv_write(q, k, v, slots, table, *caches, backend=backend)
        return out, *expand_islands(rejected, 1, 3, backend=backend), masks.pack(masks.tree(parents))

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    q.normal_()
    slots.copy_(slots.roll(1, dims=1))
    rejected.copy_(torch.rand(rejected.shape, device="cuda") < 0.2)
    parents.copy_(torch.arange(9, device="cuda") - 1)
    graph.replay()
    torch.cuda.synchronize()
    got = [t.cpu() for t in held]
    expected = kv_write(*(t.cpu() for t in (q, k, v, slots, table)), *(torch.zeros_like(c).cpu() for c in caches))
    torch.testing.assert_close(got[0], expected, atol=4e-3, rtol=0)
    for a, b in zip(got[1:4], expand_islands(rejected.cpu(), 1, 3), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(got[4], masks.pack(masks.raster_causal(9)))


def test_reference_on_a_device_skips_padding() -> None:
    """The torch backend, which does not ask the device for padding either."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    q, k, v, slots, table = tokens(3, 6, 2, 8, torch.float32)
    slots[1] = -1
    results = []
    for device in ("cpu", "cuda"):
        caches = [torch.full((3, 40, 2, 8), 7.0, device=device) for _ in range(2)]
        out = kv_write(*(t.to(device) for t in (q, k, v, slots, table)), *caches, backend="torch")
        results.append([t.cpu() for t in (out, *caches)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
