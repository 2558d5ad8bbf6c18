"""Diversity at its extremes, by loops over pairs, and its error."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mulosd.measure.metrics.diversity import mean_over_prompts, overall_diversity, prompt_diversities


def test_copies_have_none_and_orthogonal_pictures_all() -> None:
    assert overall_diversity(np.ones((6, 5))).value == pytest.approx(0)
    assert overall_diversity(np.eye(6)).value == pytest.approx(1)
    assert overall_diversity(np.eye(6) * 7).value == pytest.approx(1), "length says nothing"
    within = prompt_diversities(np.concatenate([np.eye(3), np.ones((3, 3))]), 3)
    assert within == pytest.approx([1, 0])
    assert mean_over_prompts(within)["value"] == pytest.approx(0.5)


def test_the_value_is_the_mean_over_pairs() -> None:
    x = np.random.default_rng(0).normal(1, 1, (9, 5))
    pairs = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(x, 2)]
    assert overall_diversity(x).value == pytest.approx(np.mean(pairs))
    thirds = [np.mean([pairs_of(x[s : s + 3])]) for s in (0, 3, 6)]
    assert prompt_diversities(x, 3) == pytest.approx(thirds)


def pairs_of(x: np.ndarray) -> float:
    return float(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(x, 2)]))


def test_the_error_is_that_of_the_value() -> None:
    rng = np.random.default_rng(1)
    draws = [overall_diversity(rng.normal(0.5, 1, (60, 6)), seed=s) for s in range(60)]
    true = np.std([d.value for d in draws], ddof=1)
    assert 0.6 * true < np.mean([d.std for d in draws]) < 1.5 * true


def test_it_checks() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        overall_diversity(np.eye(3))
    with pytest.raises(ValueError, match="2 or more"):
        prompt_diversities(np.eye(4), 1)
    with pytest.raises(ValueError, match="2 or more"):
        prompt_diversities(np.eye(5), 2)
