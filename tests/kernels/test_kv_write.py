"""Rotation and placement against float64, on caches poisoned with NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels import kv_write


def rotated(x: torch.Tensor, slots: torch.Tensor, rotary: torch.Tensor) -> np.ndarray:
    """Pairs turned by the matrix ((cos, -sin), (sin, cos)), float64."""
    table = rotary.double().numpy()[slots.numpy()]
    cos, sin = table[:, :, None, :, 0], table[:, :, None, :, 1]
    x64 = x.double().numpy()
    out = np.empty_like(x64)
    out[..., 0::2] = x64[..., 0::2] * cos - x64[..., 1::2] * sin
    out[..., 1::2] = x64[..., 1::2] * cos + x64[..., 0::2] * sin
    return out


def angles(size: int, dim: int) -> torch.Tensor:
    angle = torch.rand(size, dim // 2, generator=torch.Generator().manual_seed(0)) * 6
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    queries=st.integers(1, 5),
    heads=st.sampled_from([(2, 2), (4, 1)]),
    turn=st.booleans(),
    contiguous=st.booleans(),
)
def test_rotates_and_places(
    seed: int, batch: int, queries: int, heads: tuple[int, int], turn: bool, contiguous: bool
) -> None:
    size, dim = 11, 6
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, queries, h, dim, generator=generator) for h in (heads[0], heads[1], heads[1]))
    start = seed % (size - queries + 1) if contiguous else None
    slots = (
        (start + torch.arange(queries)).expand(batch, queries)
        if start is not None
        else torch.stack([torch.randperm(size, generator=generator)[:queries] for _ in range(batch)])
    )
    rotary = angles(size, dim) if turn else None
    k_cache = torch.full((batch, size, heads[1], dim), math.nan)
    v_cache = torch.full((batch, size, heads[1], dim), math.nan)
    before = q.clone(), k.clone(), v.clone()
    out = kv_write(q, k, v, slots, rotary, k_cache, v_cache, start=start)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), before, strict=True))
    turned = [x.double().numpy() if rotary is None else rotated(x, slots, rotary) for x in (q, k)]
    np.testing.assert_allclose(out.numpy(), turned[0], atol=1e-6)
    for b in range(batch):
        written = slots[b].tolist()
        np.testing.assert_allclose(k_cache[b, written].numpy(), turned[1][b], atol=1e-6)
        assert torch.equal(v_cache[b, written], v[b])
        rest = [s for s in range(size) if s not in written]
        assert k_cache[b, rest].isnan().all()
        assert v_cache[b, rest].isnan().all()


def test_slices_of_one_projection() -> None:
    """q, k and v as views of one [B, Q, 3, H, D] tensor, the way a fused projection gives them."""
    q, k, v = torch.randn(2, 3, 3, 2, 8).unbind(2)
    slots, rotary = torch.tensor([[0, 1, 2]] * 2), angles(4, 8)
    caches = [torch.zeros(2, 4, 2, 8) for _ in range(2)]
    out = kv_write(q, k, v, slots, rotary, *caches, start=0)
    np.testing.assert_allclose(out.numpy(), rotated(q, slots, rotary), atol=1e-6)


def test_both_paths_agree_bit_for_bit() -> None:
    q, k, v = torch.randn(3, 2, 4, 2, 8).unbind(0)
    slots, rotary = (3 + torch.arange(4)).expand(2, 4), angles(9, 8)
    results = []
    for start in (None, 3):
        caches = [torch.zeros(2, 9, 2, 8) for _ in range(2)]
        results.append([kv_write(q, k, v, slots, rotary, *caches, start=start), *caches])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_known_turn_and_half_precision() -> None:
    """A quarter turn takes (a, b) to (-b, a), exact in every type."""
    rotary = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype).view(1, 1, 1, 4)
        caches = [torch.zeros(1, 1, 1, 4, dtype=dtype) for _ in range(2)]
        out = kv_write(x, x, x, torch.zeros(1, 1, dtype=torch.int64), rotary, *caches, start=0)
        assert out.dtype == dtype
        assert out.flatten().tolist() == [-2.0, 1.0, 3.0, 4.0]
        assert caches[0].flatten().tolist() == [-2.0, 1.0, 3.0, 4.0]


def test_cache_may_be_of_another_type() -> None:
    x, slots = torch.randn(1, 2, 1, 4), torch.tensor([[1, 0]])
    for start in (None, 0):
        caches = [torch.zeros(1, 2, 1, 4, dtype=torch.bfloat16) for _ in range(2)]
        kv_write(x, x, x, slots, None, *caches, start=start)
        order = [1, 0] if start is None else [0, 1]
        assert torch.equal(caches[0][0], x[0, order].bfloat16())


def test_rows_of_a_call_may_be_any_of_the_caches() -> None:
    """Each is written where its number says; padding, whichever row it names, leaves all caches as they were."""
    q, k, v = torch.randn(3, 3, 2, 2, 4).unbind(0)
    slots, cache_rows = torch.tensor([[4, 0], [-1, 3], [-1, -1]]), torch.tensor([5, 2, 2])
    caches = torch.randn(2, 6, 5, 2, 4)
    expected = caches.clone()
    expected[0, 5, [4, 0]], expected[1, 5, [4, 0]] = k[0], v[0]
    expected[0, 2, 3], expected[1, 2, 3] = k[1, 1], v[1, 1]
    out = kv_write(q, k, v, slots, None, *caches, cache_rows=cache_rows)
    assert torch.equal(caches, expected)
    assert torch.equal(out, q.masked_fill((slots < 0)[..., None, None], 0.0))
    kv_write(q, k, v, torch.full((3, 2), -1), None, *caches, cache_rows=torch.tensor([2, 2, 0]))
    assert torch.equal(caches, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(2, 3, 1, 4)}, "k and v"),
        ({"k": torch.zeros(2, 2, 2, 4), "v": torch.zeros(2, 2, 2, 4)}, "k and v"),
        ({"k_cache": torch.zeros(2, 8, 1, 4)}, "caches"),
        ({"rotary": torch.zeros(8, 4, 2)}, "rotary"),
        ({"slots": torch.zeros(2, 2, dtype=torch.int64)}, "slots"),
        ({"cache_rows": torch.zeros(3, dtype=torch.int64)}, "cache_rows"),
        ({"cache_rows": torch.zeros(2, dtype=torch.int32)}, "cache_rows"),
        ({"start": 6}, "start"),
        ({"start": 4, "rotary": torch.zeros(6, 2, 2)}, "start"),
        ({"start": -1}, "start"),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    arguments = {
        "q": torch.zeros(2, 3, 2, 4),
        "k": torch.zeros(2, 3, 2, 4),
        "v": torch.zeros(2, 3, 2, 4),
        "slots": torch.zeros(2, 3, dtype=torch.int64),
        "rotary": None,
        "k_cache": torch.zeros(2, 8, 2, 4),
        "v_cache": torch.zeros(2, 8, 2, 4),
    }
    with pytest.raises(ValueError, match=message):
        kv_write(**(arguments | change))  # type: ignore[arg-type]
