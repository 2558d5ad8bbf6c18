"""Steps of fixed shapes compute the rows that requests feed, wherever in the cache these lie.

    OMP_NUM_THREADS=1 python -m pytest -s -q tests/fake_cuda/test_rows.py

prints rows computed and rows fed, for docs/gpu.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from unittest import mock

import pytest
import torch

from mulosd.engine.batch import Feed
from mulosd.engine.engine import Engine
from mulosd.engine.graphs import StaticStep
from mulosd.engine.scheduler import SchedulerConfig

from .device import FakeCuda
from .lanes import DECODERS, SAMPLING, text_family

UNGUIDED = SAMPLING.changed("cfg_scale=1")


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("serial", SAMPLING), ("serial", UNGUIDED), ("mulo, windows", SAMPLING), ("eagle", SAMPLING)],
    ids=["serial", "serial, unguided", "mulo, windows", "eagle"],
)
def test_a_request_in_the_last_rows_of_a_cache_computes_its_own(name: str, sampling: object) -> None:
    """Seven others stop early: what is left is one request in the last of the rows for eight."""
    branches = 2 if sampling is SAMPLING else 1
    options = {"decoder": DECODERS[name], "sampling": sampling}
    expected = Engine(text_family()).generate("red pear", seed=7, **options).tokens[0]  # type: ignore[arg-type]
    computed: Counter[int] = Counter()
    fed, run = 0, StaticStep.run

    def counting(step: StaticStep, feeds: Sequence[Feed]) -> object:
        nonlocal fed
        computed[step.key.rows] += 1
        fed += sum(feed.lane.branches for feed in feeds)
        return run(step, feeds)

    with FakeCuda() as log:
        config = SchedulerConfig(max_running=8)
        engine = Engine(text_family(), device="cuda", dtype="float32", config=config)
        numbers = [engine.add_request("red pear", seed=i, **options) for i in range(8)]  # type: ignore[arg-type]
        engine.step()
        assert all(len(cache.used) == 16 for cache in engine.caches.values())
        assert all(engine.abort(number) for number in numbers[:7])
        [request] = engine.scheduler.running
        first = {lane.first_row for lane in request.lanes}
        tokens = None
        with mock.patch.object(StaticStep, "run", counting):
            while engine.busy:
                tokens = next((u.tokens for u in engine.step() if u.kind == "final"), tokens)
        assert log.sound(), log.summary()
    rows = sum(rows * steps for rows, steps in computed.items())
    print(f"| {name}, {branches} rows from {max(first)} on | {rows} | {fed} |")
    assert max(first) == 7 * branches
    assert tokens is not None and torch.equal(tokens, expected)
    assert set(computed) == {branches}
    assert rows == fed
