"""Logit processing against float64 definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.kernels import processed_logits
from mulosd.kernels.sampling import mask_top_p

INF = math.inf


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 4),
    vocab=st.integers(1, 40),
    guided=st.booleans(),
    cfg_scale=st.sampled_from([0.0, 0.3, 1.0, 4.0, -1.5]),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 7, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.5, 1e-6]),
    coarse=st.booleans(),
)
def test_matches_float64(
    distribution: Callable[..., np.ndarray],
    seed: int,
    rows: int,
    vocab: int,
    guided: bool,
    cfg_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    coarse: bool,
) -> None:
    rng = np.random.default_rng(seed)
    cond = rng.normal(0, 2, (rows, vocab)).astype(np.float32)
    uncond = rng.normal(0, 2, (rows, vocab)).astype(np.float32) if guided else None
    if coarse:  # halves: ties that every step of the arithmetic keeps exact (the scales are, or the row is not guided)
        cond = np.round(cond * 2) / 2
        uncond = None
    expected = distribution(cond, uncond, cfg_scale, temperature, top_k, top_p)
    tensor = None if uncond is None else torch.from_numpy(uncond)
    logits = processed_logits(torch.from_numpy(cond), tensor, cfg_scale, temperature, top_k, top_p)
    assert logits.dtype == torch.float32
    actual = logits.double().softmax(-1).numpy()
    if top_p < 1.0 and not np.array_equal(actual > 0, expected > 0):
        # Only a mass that meets top_p to rounding may put the cut one entry away.
        full = distribution(cond, uncond, cfg_scale, temperature, top_k, 1.0)
        for row in np.unique(np.nonzero((actual > 0) != (expected > 0))[0]):
            assert np.min(np.abs(np.cumsum(np.sort(full[row])[::-1]) - top_p)) < 1e-6
        return
    np.testing.assert_allclose(actual, expected, atol=2e-6)


def test_ties_at_the_kth_value_stay() -> None:
    logits = processed_logits(torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]), None, 1.0, 1.0, 2, 1.0)
    assert logits.tolist() == [[-INF, 3.0, 2.0, 2.0, -INF]]


def test_top_p_keeps_at_least_one_and_prefers_the_lower_index() -> None:
    logits = processed_logits(torch.zeros(1, 4), None, 1.0, 1.0, 0, 0.5)
    assert logits.tolist() == [[0.0, 0.0, -INF, -INF]]
    assert processed_logits(torch.zeros(1, 4), None, 1.0, 1.0, 0, 1e-9).tolist() == [[0.0, -INF, -INF, -INF]]


def test_top_p_works_on_what_top_k_left() -> None:
    """Of (.4, .3, .2, .1) top-k 2 leaves (.57, .43): .5 is reached by the first, though .4 alone would not."""
    cond = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    kept = processed_logits(cond, None, 1.0, 1.0, 2, 0.5).isfinite()
    assert kept.tolist() == [[True, False, False, False]]


def test_greedy_keeps_the_first_maximum() -> None:
    logits = processed_logits(torch.tensor([[0.0, 5.0, 5.0]]), None, 1.0, 0.0, 0, 1.0)
    assert logits.tolist() == [[-INF, 5.0, -INF]]


def test_guidance_is_exact_at_scale_zero_and_one() -> None:
    cond, uncond = torch.randn(3, 50), torch.randn(3, 50)
    assert torch.equal(processed_logits(cond, uncond, 1.0, 1.0, 0, 1.0), cond)
    assert torch.equal(processed_logits(cond, uncond, 0.0, 1.0, 0, 1.0), uncond)


def test_half_precision_is_widened() -> None:
    cond = torch.randn(2, 9).bfloat16()
    assert torch.equal(processed_logits(cond, None, 1.0, 1.0, 0, 1.0), cond.float())


def test_inputs_stay_untouched() -> None:
    cond, uncond = torch.randn(2, 9), torch.randn(2, 9)
    before = cond.clone(), uncond.clone()
    processed_logits(cond, uncond, 2.0, 0.5, 3, 0.5)
    assert torch.equal(cond, before[0])
    assert torch.equal(uncond, before[1])


@pytest.mark.parametrize("value", [[0.0, math.nan], [-INF, -INF], [0.0, INF]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_row_is_named(value: list[float], temperature: float) -> None:
    with pytest.raises(ValueError, match="row 1 "):
        processed_logits(torch.tensor([[0.0, 1.0], value, [math.nan, 0.0]]), None, 1.0, temperature, 0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cond": torch.zeros(3)}, "cond"),
        ({"cond": torch.zeros(1, 3, dtype=torch.int64)}, "cond"),
        ({"uncond": torch.zeros(1, 4)}, "uncond"),
        ({"cfg_scale": math.nan}, "cfg_scale"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    arguments = {
        "cond": torch.zeros(1, 3),
        "uncond": torch.zeros(1, 3),
        "cfg_scale": 1.0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        processed_logits(**(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.75, 0.999])
@pytest.mark.parametrize("steps", [0, 3, 50])
def test_top_p_by_values_keeps_what_sorted_places_keep(top_p: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    logits = torch.randn(6, 500, generator=generator)
    if steps:  # many entries of one value, and of what top-k leaves none at all
        logits = (logits * steps).round() / steps
    logits[3] = logits[3].masked_fill(logits[3] < 1, -INF)
    logits[4] = 0.0
    logits[5, :250], logits[5, 250:] = 0.0, -0.0
    # What takes part in a backward pass is sorted with its places.
    wanted = mask_top_p(logits.clone().requires_grad_(), top_p).detach()
    assert torch.equal(mask_top_p(logits, top_p), wanted)
    assert wanted.isfinite().any(dim=-1).all()
