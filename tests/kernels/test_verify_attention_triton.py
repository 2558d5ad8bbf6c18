"""The Triton kernels of attention in the interpreter, against the float64 oracle; hidden keys are NaN."""

from __future__ import annotations

import attention_cases as cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels import masks, verify_attention

pytestmark = pytest.mark.interpreter


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    queries=st.sampled_from([1, 3, 16, 33, 70]),
    prefix=st.sampled_from([0, 1, 63, 100]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dim=st.sampled_from([8, 20, 64, 100]),
    mask=st.sampled_from(cases.MASKS),
    some_valid=st.booleans(),
    ragged=st.booleans(),
    indexed=st.booleans(),
    splits=st.sampled_from([None, 1, 2, 5]),
)
def test_draft_blocks(
    seed: int,
    queries: int,
    prefix: int,
    heads: tuple[int, int],
    dim: int,
    mask: str,
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
        some_valid=some_valid,
        ragged=ragged,
        indexed=indexed,
        scale=0.4,
    )
    cases.check(case, "triton", 5e-6, splits)


@pytest.mark.parametrize("dim", [64, 96, 100, 128])
def test_head_sizes_in_half_precision(dim: int) -> None:
    case = cases.draw(dim, queries=9, prefix=70, heads=(4, 2), dim=dim, mask="random", dtype=torch.float16)
    cases.check(case, "triton", 4e-3, 2)


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("start", [0, 130])
def test_contiguous_slots(mask: str, start: int) -> None:
    """All three loops run: keys seen by all rows, by some, and the draft; several tiles of rows."""
    case = cases.draw(start, queries=40, prefix=start, heads=(2, 1), dim=16, mask=mask, scattered=False)
    cases.check(case, "triton", 5e-6, 1)


@pytest.mark.parametrize("layout", ["by head", "interleaved"])
def test_strided_caches(layout: str) -> None:
    case = cases.draw(9, batch=3, heads=(4, 2), dim=16, mask="random", layout=layout, ragged=True)
    assert not case.k.is_contiguous()
    cases.check(case, "triton", 5e-6)


def test_strided_queries_words_and_slots() -> None:
    case = cases.draw(10, batch=1, queries=35, dim=16, mask="random")
    case.q = case.q.transpose(1, 3).contiguous().transpose(1, 3)
    case.slots = case.slots.T.contiguous().T
    block = masks.pack(case.mask).transpose(1, 2).contiguous().transpose(1, 2)
    out, lse = verify_attention(*case.tensors(), **(case.options() | {"block": block}), backend="triton")
    expected, expected_lse = cases.oracle(case)
    torch.testing.assert_close(out.double(), torch.from_numpy(expected), atol=5e-6, rtol=0)
    torch.testing.assert_close(lse.double(), torch.from_numpy(expected_lse), atol=5e-6, rtol=0)


def test_splits_agree_and_repeat() -> None:
    case = cases.draw(11, queries=3, prefix=200, heads=(2, 1), dim=16, mask="random", some_valid=True, ragged=True)
    results = {
        splits: verify_attention(*case.tensors(), **case.options(), splits=splits, backend="triton")
        for splits in (1, 3, 1000)
    }
    for splits, result in results.items():
        again = verify_attention(*case.tensors(), **case.options(), splits=splits, backend="triton")
        for a, b, one in zip(result, again, results[1], strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, one, atol=2e-6, rtol=0)


def test_a_visible_nan_is_passed_on() -> None:
    case = cases.draw(12, queries=3, prefix=70, dim=16, mask="causal")
    case.v[0, 5] = torch.nan
    for splits in (1, 2):
        out = verify_attention(
            *case.tensors(), **(case.options() | {"return_lse": False}), splits=splits, backend="triton"
        )
        assert out[0].isnan().all()
        assert not out[1].isnan().any()


def test_nothing_to_do() -> None:
    case = cases.draw(13, batch=0, dim=16, mask="none", scattered=False)
    out, lse = verify_attention(*case.tensors(), **case.options(), backend="triton")
    assert out.shape == case.q.shape
    assert lse.shape == case.q.shape[:3]
