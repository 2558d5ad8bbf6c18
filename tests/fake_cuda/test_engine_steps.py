"""Every decoder on a made-up GPU: the tokens of the CPU, and what a step costs the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from mulosd.engine.engine import Engine
from mulosd.engine.scheduler import SchedulerConfig

from .counting import Counts, counted
from .device import FakeCuda
from .lanes import DECODERS, PROMPTS, SAMPLING, class_family, text_family
from .log import Log


class Budget(NamedTuple):
    """What a step of one request may cost, in the mean over an image: waits of the host, and kernels that it launches
    one by one, prefix, verification and pixels included."""

    waits: float
    launches: float


# Grids of side 8: an image is 14 to 80 steps, so that what it costs once weighs much: some eighty launches, four waits,
# and one more at the end of each stage, which times it. A round of EAGLE is several steps, all of them replays; its
# tree is grown and judged between them.
BUDGETS = {
    "serial": Budget(0.14, 1.8),
    "zipar": Budget(0.28, 6.0),
    "jacobi": Budget(1.8, 18.0),
    "jacobi, independent": Budget(2.8, 54.0),
    "mulo, raster": Budget(0.24, 2.6),
    "mulo, windows": Budget(0.52, 8.5),
    "mulo, cascade of scale 4": Budget(0.6, 10.0),
    "mulo, leaning": Budget(0.52, 15.0),
    "mulo, rows by rows": Budget(0.3, 3.4),
    "draft-only": Budget(0.6, 8.0),
    "eagle": Budget(2.4, 95.0),
}
# Of the forwards behind the prefixes, with one request, six at a time, and six that come one after the other.
LEAST_SHARE = 0.9


class Runs(NamedTuple):
    """One request, six at a time, six every seven steps (phrases alone); what the six drew on the CPU; and the numbers
    of the devices on which the warm-up captured graphs."""

    one: Counts
    six: Counts
    staggered: Counts
    expected: Counts
    captured: set[int]


def measure(kind: str, name: str, device: str) -> Runs:
    """Run a decoder on a family of a kind, after a warm-up for all that the scheduler allows."""
    make = text_family if kind == "text" else class_family
    decoder, config = DECODERS[name], SchedulerConfig(max_running=6)
    expected = counted(Engine(make(), config=config), Log(), [decoder] * 6, SAMPLING, PROMPTS[kind])
    with FakeCuda() as log:
        engine = Engine(make(), device=device, dtype="float32", config=config)
        engine.warmup(decoder, SAMPLING)
        assert log.sound(), log.summary()
        captured = set(log.captures)
        one = counted(engine, log, [decoder], SAMPLING, PROMPTS[kind])
        six = counted(engine, log, [decoder] * 6, SAMPLING, PROMPTS[kind])
        # The second family is there for its kind and its device: what the schedule changes is seen with the first.
        staggered = six if kind == "classes" else counted(engine, log, [decoder] * 6, SAMPLING, PROMPTS[kind], gap=7)
        del engine
    return Runs(one, six, staggered, expected, captured)


def shown(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def assert_right(runs: Runs) -> None:
    for counts in (runs.one, runs.six, runs.staggered):
        for made, drawn in zip(counts.tokens, runs.expected.tokens, strict=False):
            assert torch.equal(made, drawn)
        assert counts.faults == {}
        assert counts.destroyed == 0, "a graph went after the warm-up"


@pytest.fixture(scope="module", params=DECODERS)
def measured(request: pytest.FixtureRequest) -> tuple[str, Runs]:
    return request.param, measure("text", request.param, "cuda")


def test_tokens_are_those_of_the_cpu_and_nothing_is_illegal(measured: tuple[str, Runs]) -> None:
    assert_right(measured[1])


def test_a_step_costs_the_host_no_more_than_its_budget(measured: tuple[str, Runs]) -> None:
    name, runs = measured
    budget, one = BUDGETS[name], runs.one
    shares = (one.share, runs.six.share, runs.staggered.share)
    waits, launches = one.waits / one.steps, one.launches / one.steps
    rows = [counts.rows / counts.needed for counts in (one, runs.six, runs.staggered)]
    print(f"| {name} | {waits:.2f} | {launches:.1f} | {shown(shares, '.0%')} | {shown(rows, '.2f')} |")
    assert waits <= budget.waits
    assert launches <= budget.launches
    assert one.rows == one.needed
    assert runs.six.rows <= 2 * runs.six.needed and runs.staggered.rows <= 2 * runs.staggered.needed
    assert min(shares) >= LEAST_SHARE, shares


@pytest.mark.parametrize(("name", "launches"), [("serial", 0), ("zipar", 2)])
def test_in_the_middle_of_an_image_the_host_waits_for_nothing(name: str, launches: int) -> None:
    """Serial decoding needs nothing of the host; ZipAR is told the slots and what they may see, in two copies."""
    with FakeCuda() as log:
        engine = Engine(text_family(), device="cuda", dtype="float32", config=SchedulerConfig(max_running=6))
        engine.warmup(DECODERS[name], SAMPLING)
        for seed in range(3):
            engine.add_request("red pear", decoder=DECODERS[name], sampling=SAMPLING, seed=seed)
        for _ in range(8):
            engine.step()
        log.reset()
        for _ in range(10):
            engine.step()
        assert not log.waits and log.replays == 10
        assert sum(log.launches.values()) == 10 * launches
        engine.clear()


@pytest.mark.parametrize("name", DECODERS)
def test_a_family_of_classes_on_the_second_device(name: str) -> None:
    runs = measure("classes", name, "cuda:1")
    assert_right(runs)
    assert runs.captured == {1}
