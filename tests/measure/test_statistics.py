"""Intervals against known values and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from mulosd.measure.statistics import bootstrap_ratio, share_interval, spread, wilson


def test_wilson_gives_published_values() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-4)  # Newcombe 1998, table I, method 3
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-4)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_the_bootstrap_covers_the_truth_for_correlated_objects() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(120):
        objects = rng.integers(1, 4, 80)
        found = objects * (rng.random(80) < 0.8)  # the objects of a prompt stand or fall together
        low, high = bootstrap_ratio(found, objects, resamples=400, seed=trial)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 120 <= 0.99


def test_the_bootstrap_of_equal_differences_is_a_point() -> None:
    assert bootstrap_ratio(np.full(10, -1.0), np.ones(10)) == (-1.0, -1.0)
    with pytest.raises(ValueError, match="positive total"):
        bootstrap_ratio([0.0], [0.0])


def test_shares_at_the_ends_do_not_collapse() -> None:
    low, high = share_interval([1, 2, 3], [1, 2, 3])
    assert low < 0.6
    assert high == 1.0
    assert share_interval([0, 0], [1, 3])[1] > 0.5


def test_spread_is_median_and_quantiles() -> None:
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx({"median": 3.5, "p20": 2.0, "p80": 5.0})
    with pytest.raises(ValueError, match="no values"):
        spread([])
