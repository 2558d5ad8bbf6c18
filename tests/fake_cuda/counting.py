"""Counts a step of every decoder on the made-up device, and how many forwards are replays of graphs.

    OMP_NUM_THREADS=1 python -m pytest -s -q tests/fake_cuda/test_engine_steps.py

prints the table of docs/gpu.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest import mock

from torch import Tensor

from mulosd.engine import runner
from mulosd.engine.batch import Feed, Result
from mulosd.engine.decoding import Decoder
from mulosd.engine.engine import Engine
from mulosd.engine.graphs import StaticStep
from mulosd.engine.models.eagle import Model
from mulosd.engine.sampling import SamplingParams

from .log import Log


@dataclass
class Counts:
    """What requests took: steps of the scheduler, forwards by how they ran, and what the host did.

    Attributes:
        tokens: int64 [H, W] of each request, on the CPU.
        eager: forwards that no graph replayed; those of prefixes alone are not counted, of which a request has one a
            grid, whatever its size.
        faults: mixed devices, what a capture forbids and the like, by what and where.
        destroyed, captured: graphs that went meanwhile, and that were made.
        rows, needed: of the steps of fixed shapes, rows of the cache that they computed, and those that requests fed.
    """

    tokens: list[Tensor]
    steps: int = 0
    replays: int = 0
    eager: int = 0
    waits: int = 0
    launches: int = 0
    faults: dict[tuple[str, str], int] = field(default_factory=dict)
    destroyed: int = 0
    captured: int = 0
    rows: int = 0
    needed: int = 0

    @property
    def share(self) -> float:
        """Of the forwards behind the prefixes, those that are replays."""
        return self.replays / max(1, self.replays + self.eager)


def counted(
    engine: Engine,
    log: Log,
    decoders: Sequence[Decoder],
    sampling: SamplingParams,
    prompts: Sequence[str],
    *,
    gap: int = 0,
) -> Counts:
    """Run one request a decoder, seeds 0 on, each `gap` steps after the one before."""
    eager, forward = 0, runner.forward
    rows, needed, run_step = 0, 0, StaticStep.run

    def counting(model: Model, feeds: Sequence[Feed]) -> list[Result]:
        nonlocal eager
        eager += any(feed.tokens is not None for feed in feeds)
        return forward(model, feeds)

    def counting_rows(step: StaticStep, feeds: Sequence[Feed]) -> list[Result]:
        nonlocal rows, needed
        rows, needed = rows + step.key.rows, needed + sum(feed.lane.branches for feed in feeds)
        return run_step(step, feeds)

    log.reset()
    before = log.destroyed
    numbers: list[int] = []
    found: dict[int, Tensor] = {}
    steps = 0
    with mock.patch.object(runner, "forward", counting), mock.patch.object(StaticStep, "run", counting_rows):
        while len(found) < len(decoders):
            while len(numbers) < len(decoders) and steps >= len(numbers) * gap:
                i = len(numbers)
                prompt = prompts[i % len(prompts)]
                numbers.append(engine.add_request(prompt, decoder=decoders[i], sampling=sampling, seed=i))
            for update in engine.step():
                if update.error is not None:
                    raise update.error
                if update.kind == "final" and update.tokens is not None:
                    found[update.request] = update.tokens
            steps += 1
    log.land()
    return Counts(
        [found[n] for n in numbers],
        steps,
        log.replays,
        eager,
        sum(log.waits.values()),
        sum(log.launches.values()),
        {**log.mixes, **log.illegal},
        log.destroyed - before,
        len(log.captures),
        rows,
        needed,
    )
