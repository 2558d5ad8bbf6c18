"""Calibration by quality: the fewest forwards that keep it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mulosd.engine.decoding import MuloSD
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.measure import choose as module
from mulosd.measure.choose import Choices, Trial, choose, distinct, foreseen, stands
from mulosd.measure.metrics.accuracy import Score
from mulosd.measure.run import Sample

PROMPTS = ["red apple", "blue pear", "apple", "pear", "red", "blue"] * 4
CHOICES = Choices(shares=(0.01, 0.05, 0.2), pools=(1, 3), radii=(0, 1), windows=(0, 2), drafts=((None, None),))
BASE = MuloSD(scale=2, upsampler="latent")


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(random_family())


def test_forwards_are_foreseen_before_anything_is_verified(engine: Engine) -> None:
    trials = distinct(foreseen(engine, PROMPTS[:6], BASE, CHOICES, seed=3))
    assert len({t.decoder for t in trials}) == len(trials) > 12
    assert [t.forwards for t in trials] == sorted(t.forwards for t in trials)
    assert trials[-1].forwards > trials[0].forwards + 20
    for trial in (trials[0], trials[-1]):
        made = engine.generate(PROMPTS[:6], decoder=trial.decoder, seed=3)
        drawn = sum(sum(stats.forwards.values()) for stats in made.stats) / 6
        assert trial.forwards == pytest.approx(drawn, abs=2)
        assert sum(s.rejection or 0 for s in made.stats) / 6 == pytest.approx(trial.rejection)


def judged(engine: Engine, good: Any, seen: list[Any]) -> Any:
    """A stand-in for drawing and judging: scenes are right with the reference, and with the settings that are good."""

    def sampled(_: Engine, prompts: list[str], decoder: Any, *rest: Any) -> Sample:
        seen.append(decoder)
        right = not isinstance(decoder, MuloSD) or good(decoder)
        sample = Sample(decoder, scenes=True, nll=np.zeros(len(prompts)))
        sample.scores = [Score(1, int(right), 0, True, True) for _ in prompts]
        sample.stats = engine.generate(prompts[:1], decoder=decoder).stats
        return sample

    return sampled


def test_the_fastest_setting_that_keeps_scenes_is_taken(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [t.decoder for t in distinct(foreseen(engine, PROMPTS, BASE, CHOICES, seed=0))]
    first = next(i for i, d in enumerate(order) if d.radius == 1 and d.pool == 3)
    seen: list[Any] = []
    monkeypatch.setattr(module, "sampled", judged(engine, lambda d: d.radius == 1 and d.pool == 3, seen))
    found, tried = choose(engine, PROMPTS, base=BASE, choices=CHOICES, most=len(order))
    assert seen[1:] == order[: first + 1]  # none is drawn behind the one that is taken
    assert [t.kept for t in tried] == [False] * first + [True]
    wanted = order[first]
    assert (found.tau, found.pool, found.radius, found.window) == (wanted.tau, 3, 1, wanted.window)
    assert found.prompts == len(PROMPTS)


def test_where_nothing_keeps_it_nothing_is_chosen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sampled", judged(engine, lambda d: False, []))
    with pytest.raises(ValueError, match=r"none of the 2 fastest settings keeps scenes; the last was off by scenes -1"):
        choose(engine, PROMPTS, base=BASE, choices=CHOICES, most=2)


def test_by_likelihood_without_a_grader(engine: Engine) -> None:
    choices = Choices((0.05, 0.97), (1,), (1,), (0, 2), ((None, None),))
    found, tried = choose(engine, PROMPTS[:12], ["nll"], base=BASE, choices=choices)
    assert tried[-1].kept and tried[-1].differences["nll"]["ci95"][0] <= 0
    assert all(not t.kept and t.differences["nll"]["ci95"][0] > 0 for t in tried[:-1])
    assert found.scale == 2 and found.rejection == tried[-1].rejection
    with pytest.raises(ValueError, match="cannot be judged by scenes"):
        choose(engine, PROMPTS[:4], ["scenes"], base=BASE, choices=CHOICES)
    for wrong in ([], ["beauty"]):
        with pytest.raises(ValueError, match="scenes, accuracy, kid, nll"):
            choose(engine, PROMPTS[:4], wrong)


@pytest.mark.parametrize(
    ("name", "interval", "kept"),
    [
        ("scenes", (-0.2, 0.01), True),
        ("scenes", (-0.2, -0.01), False),
        ("kid", (-3.0, -1.0), True),
        ("kid", (0.5, 4.0), False),
        ("nll", (-0.1, 0.4), True),
    ],
)
def test_a_loss_counts_where_its_interval_leaves_zero(name: str, interval: tuple[float, float], kept: bool) -> None:
    assert stands(name, {"value": sum(interval) / 2, "ci95": list(interval)}) is kept
    assert not Trial(BASE, 0.1, 3.0).kept
