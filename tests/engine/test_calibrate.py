"""Calibration to a number of forwards: what is planned is what decoding does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mulosd.engine.calibrate import DraftMasses, draft_masses, mean_steps, tau_of_steps
from mulosd.engine.decoding import DraftOnly, MuloSD
from mulosd.engine.engine import Engine

from .conftest import PROMPTS

BASE = MuloSD(scale=2, tau=0.03, radius=1, pool=2, window=2)


@pytest.fixture(scope="module")
def found(engine: Engine) -> DraftMasses:
    return draft_masses(engine, PROMPTS, DraftOnly(scale=2).resolve(engine.family), pool=2, seed=5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"rejection": "raster"}, {"rejection": "naive", "window": 0}, {"entropy_radius": 0.5}],
    ids=str,
)
def test_planned_forwards_are_those_of_decoding(engine: Engine, found: DraftMasses, changes: dict[str, object]) -> None:
    decoder = BASE.changed(**changes).resolve(engine.family)
    result = engine.generate(PROMPTS, decoder=decoder, seed=5)
    depth = [stats.depth for stats in result.stats]
    assert mean_steps(found, decoder, decoder.tau or 0.0) == pytest.approx(sum(depth) / len(depth))
    assert max(depth) > 0


@pytest.mark.parametrize("rejection", ["local", "naive", "raster"])
@pytest.mark.parametrize("wanted", [0.0, 3.0, 7.5, 1e9])
def test_the_nearest_number_of_forwards_is_found(
    engine: Engine, found: DraftMasses, rejection: str, wanted: float
) -> None:
    decoder = replace(BASE, rejection=rejection).resolve(engine.family)
    mass = found.masses.flatten().sort().values
    every = [0.0, *((mass[1:] + mass[:-1]) / 2).tolist(), 2 * float(mass[-1])]
    best = min(abs(mean_steps(found, decoder, tau) - wanted) for tau in every)
    reached = mean_steps(found, decoder, tau_of_steps(found, decoder, wanted))
    assert abs(reached - wanted) == pytest.approx(best)
