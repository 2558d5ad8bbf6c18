"""Attention against a float64 loop; what must not be read is poisoned with NaN or checked for influence."""

from __future__ import annotations

import math

import attention_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels import masks, verify_attention


def oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
    valid: torch.Tensor | None,
    scale: float | None = None,
) -> np.ndarray:
    """One query and head at a time, float64, with the visible slots picked out by name."""
    batch, queries, heads, dim = q.shape
    group = heads // k.shape[2]
    out = np.zeros((batch, queries, heads, dim))
    for b in range(batch):
        for i in range(queries):
            seen = [s for s in range(int(slots[b, i]) + 1) if valid is None or bool(valid[b, s])]
            if not seen:
                continue
            for h in range(heads):
                keys, values = k[b, seen, h // group].double().numpy(), v[b, seen, h // group].double().numpy()
                score = keys @ q[b, i, h].double().numpy() * (dim**-0.5 if scale is None else scale)
                weight = np.exp(score - score.max())
                out[b, i, h] = weight @ values / weight.sum()
    return out


def tensors(seed: int, batch: int, queries: int, size: int, heads: int, kv_heads: int, dim: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, queries, heads, dim), (batch, size, kv_heads, dim), (batch, size, kv_heads, dim)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    masked=st.booleans(),
)
def test_arbitrary_slots(seed: int, batch: int, queries: int, heads: tuple[int, int], masked: bool) -> None:
    size = 13
    q, k, v = tensors(seed, batch, queries, size, *heads, 8)
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(size, (batch, queries), generator=generator)
    kv_len = int(slots.max()) + 1
    valid = torch.rand(batch, size, generator=generator) < 0.4 if masked else None
    expected = oracle(q, k, v, slots, valid)
    k[:, kv_len:], v[:, kv_len:] = math.nan, math.nan
    out = verify_attention(q, k, v, slots, valid, kv_len=kv_len)
    assert out.shape == q.shape
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize(("start", "queries"), [(0, 1), (0, 6), (7, 1), (5, 4), (9, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_contiguous_slots(heads: tuple[int, int], start: int, queries: int, masked: bool) -> None:
    size = 13
    q, k, v = tensors(start + queries, 2, queries, size, *heads, 16)
    slots = (start + torch.arange(queries)).expand(2, queries)
    valid = torch.rand(2, size) < 0.5 if masked else None
    expected = oracle(q, k, v, slots, valid)
    k[:, start + queries :], v[:, start + queries :] = math.nan, math.nan
    for kv_len in {start + queries, size}:
        out = verify_attention(q, k, v, slots, valid, kv_len=kv_len, start=start)
        np.testing.assert_allclose(out.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("start", [None, 3])
@pytest.mark.parametrize("queries", [1, 2])
def test_query_that_sees_nothing_gives_zeros(start: int | None, queries: int) -> None:
    q, k, v = tensors(1, 2, queries, 8, 2, 2, 8)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1] = False
    valid[1, 6:] = True
    slots = (3 + torch.arange(queries)).expand(2, queries)
    out = verify_attention(q, k, v, slots, valid, kv_len=5, start=start)
    assert (out[1] == 0).all()
    np.testing.assert_allclose(out.numpy(), oracle(q, k, v, slots, valid), atol=2e-6)


def test_one_pass_equals_single_steps() -> None:
    q, k, v = tensors(5, 2, 9, 9, 4, 4, 8)
    slots = torch.arange(9).expand(2, 9)
    whole = verify_attention(q, k, v, slots, kv_len=9, start=0)
    for i in range(9):
        step = verify_attention(q[:, i : i + 1], k, v, slots[:, i : i + 1], kv_len=i + 1, start=i)
        torch.testing.assert_close(step[:, 0], whole[:, i], atol=2e-6, rtol=0)


def test_invisible_keys_have_no_influence() -> None:
    q, k, v = tensors(6, 1, 3, 10, 2, 2, 8)
    slots, valid = torch.tensor([[4, 7, 2]]), torch.ones(1, 10, dtype=torch.bool)
    valid[0, 1] = False
    before = verify_attention(q, k, v, slots, valid, kv_len=8)
    k[:, 1], v[:, 1] = 1e3, -1e3
    k[:, 5:8], v[:, 5:8] = 50.0, 50.0
    after = verify_attention(q, k, v, slots, valid, kv_len=8)
    assert torch.equal(before[0, [0, 2]], after[0, [0, 2]])
    assert not torch.equal(before[0, 1], after[0, 1])


def test_scale_and_dtype() -> None:
    q, k, v = tensors(7, 1, 2, 6, 2, 2, 8)
    slots = torch.tensor([[5, 3]])
    out = verify_attention(q, k, v, slots, kv_len=6, scale=0.9)
    np.testing.assert_allclose(out.numpy(), oracle(q, k, v, slots, None, 0.9), atol=2e-6)
    half = [t.bfloat16() for t in (q, k, v)]
    out = verify_attention(*half, slots, kv_len=6)
    assert out.dtype == torch.bfloat16
    np.testing.assert_allclose(out.float().numpy(), oracle(*half, slots, None), atol=0.03)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    queries=st.sampled_from([1, 2, 7, 31, 32, 33, 40]),
    prefix=st.sampled_from([0, 1, 9]),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    mask=st.sampled_from(cases.MASKS),
    scattered=st.booleans(),
    some_valid=st.booleans(),
    ragged=st.booleans(),
    indexed=st.booleans(),
)
def test_draft_blocks(
    seed: int,
    batch: int,
    queries: int,
    prefix: int,
    heads: tuple[int, int],
    mask: str,
    scattered: bool,
    some_valid: bool,
    ragged: bool,
    indexed: bool,
) -> None:
    case = cases.draw(
        seed,
        batch=batch,
        queries=queries,
        prefix=prefix,
        heads=heads,
        dim=8,
        mask=mask,
        scattered=scattered,
        some_valid=some_valid,
        ragged=ragged,
        indexed=indexed,
        scale=0.7,
    )
    cases.check(case, "torch", 3e-6, clean=True)


def test_a_causal_block_is_plain_causal_attention() -> None:
    """The block of raster order, the plain rule and torch's own causal attention are one thing."""
    case = cases.draw(3, queries=6, prefix=11, dim=16, mask="causal", scattered=False)
    block = masks.pack(masks.raster_causal(6))[None]
    with_block = verify_attention(*case.tensors(), kv_len=11, block=block)
    plain = verify_attention(*case.tensors(), kv_len=17, start=11)
    torch.testing.assert_close(with_block, plain, atol=2e-6, rtol=0)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()[11:]
    keys, values = case.k[:, :17].transpose(1, 2), case.v[:, :17].transpose(1, 2)
    sdpa = torch.nn.functional.scaled_dot_product_attention(case.q.transpose(1, 2), keys, values, attn_mask=mask)
    torch.testing.assert_close(with_block, sdpa.transpose(1, 2), atol=2e-6, rtol=0)


def test_two_halves_merge_by_their_log_sum_exp() -> None:
    case = cases.draw(4, queries=4, prefix=20, dim=16, mask="random")
    whole, lse = verify_attention(*case.tensors(), **case.options())
    prefix, a = verify_attention(*case.tensors(), **(case.options() | {"block": None}))
    draft, b = verify_attention(*case.tensors(), **(case.options() | {"kv_len": 0}))
    torch.testing.assert_close(torch.logaddexp(a, b), lse)
    merged = prefix * (a - lse).exp()[..., None] + draft * (b - lse).exp()[..., None]
    torch.testing.assert_close(merged, whole, atol=2e-6, rtol=0)


def test_slots_of_padding_are_not_read() -> None:
    case = cases.draw(5, queries=6, mask="ones", dim=8)
    case.counts = torch.tensor([6, 2], dtype=torch.int32)
    before = verify_attention(*case.tensors(), **case.options())
    case.slots[1, 2:] = torch.tensor([10**9, -5, 0, 1])
    for a, b in zip(before, verify_attention(*case.tensors(), **case.options()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_cache": torch.zeros(1, 8, 2, 4)}, "caches"),
        ({"v_cache": torch.zeros(2, 7, 2, 4)}, "caches"),
        ({"q": torch.zeros(2, 3, 3, 4)}, "divisor"),
        ({"kv_len": 0}, "kv_len"),
        ({"kv_len": 9}, "kv_len"),
        ({"start": 6}, "start"),
        ({"start": -1}, "start"),
        ({"slots": torch.zeros(2, 2, dtype=torch.int64)}, "slots"),
        ({"valid": torch.ones(2, 7, dtype=torch.bool)}, "valid"),
        ({"block": torch.zeros(2, 3, 2, dtype=torch.int32)}, "block"),
        ({"block": torch.zeros(3, 3, 1, dtype=torch.int32)}, "block"),
        ({"block": torch.zeros(2, 3, 1, dtype=torch.int64)}, "block"),
        ({"block": torch.zeros(2, 3, 1, dtype=torch.int32), "start": 6}, "start"),
        ({"counts": torch.zeros(2)}, "counts"),
        ({"counts": torch.zeros(3, dtype=torch.int32)}, "counts"),
        ({"splits": 0}, "splits"),
        ({"cache_rows": torch.zeros(3, dtype=torch.int64)}, "cache_rows"),
        ({"cache_rows": torch.zeros(2, dtype=torch.int32)}, "cache_rows"),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    arguments = {
        "q": torch.zeros(2, 3, 2, 4),
        "k_cache": torch.zeros(2, 8, 2, 4),
        "v_cache": torch.zeros(2, 8, 2, 4),
        "slots": torch.zeros(2, 3, dtype=torch.int64),
        "kv_len": 8,
    }
    with pytest.raises(ValueError, match=message):
        verify_attention(**(arguments | change))  # type: ignore[arg-type]
