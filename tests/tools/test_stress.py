"""Odd arguments and random use, as tools/fuzz.py and tools/chaos.py make them at length."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from .conftest import load


@pytest.fixture(scope="module")
def fuzz() -> Any:
    return load("fuzz")


@pytest.fixture
def chaos() -> Any:
    return load("chaos")


@pytest.mark.slow
def test_500_odd_calls_are_served_or_refused_in_words_and_harm_no_engine(fuzz: Any) -> None:
    calls, kinds = fuzz.Calls(), Counter[str]()
    faults = []
    for seed in range(500):
        kind, fault = fuzz.one(calls, seed)
        kinds[kind] += 1
        if fault is not None:
            faults.append(f"seed {seed}: {fault}")
    assert faults == []
    assert kinds["served"] > 50 and kinds["ValueError"] > 200  # neither all refused nor all odd


def test_an_engine_that_was_harmed_and_a_bare_exception_are_found(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fuzz.Calls()
    monkeypatch.setattr(calls, "all", [lambda rng: (_ for _ in ()).throw(KeyError("x"))])
    calls.all[0].__name__ = "broken"
    assert fuzz.one(calls, 0) == ("KeyError", "broken: KeyError: 'x'")

    def harm(rng: Any) -> None:
        with torch.no_grad():
            calls.family.ar.norm.weight.neg_()

    monkeypatch.setattr(calls, "all", [harm])
    _, fault = fuzz.one(calls, 0)
    assert fault is not None and "other tokens than before" in fault


def test_random_use_with_faults_loses_nothing_and_changes_no_image(chaos: Any) -> None:
    run = chaos.Chaos(seed=3, rate=0.03)
    run.run(60)
    run.threads(12)
    assert run.faults == []
    assert run.count["added"] >= 72 and run.count["finished"] > 30
    assert run.count["failed"] and run.count["aborted"] and run.count["injected: forward"]


def test_random_use_within_a_budget_of_cache_bytes(chaos: Any) -> None:
    run = chaos.Chaos(seed=4, rate=0.0, config=chaos.SchedulerConfig(kv_budget=120_000, max_tokens=8))
    run.run(30)
    assert run.faults == [] and run.count["failed"] == 0 and run.count["finished"] > 15


def test_a_lost_row_and_a_wrong_image_are_found(chaos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = chaos.Chaos(seed=5, rate=0.0)
    run.run(3)
    next(iter(run.engine.caches.values())).used[0] = True
    run.settle()
    assert any("still lent" in fault for fault in run.faults)
    run = chaos.Chaos(seed=5, rate=0.0)
    monkeypatch.setattr(run, "reference", lambda key: torch.full((4, 4), -1))
    run.run(5)
    assert any("other tokens than alone" in fault for fault in run.faults)
