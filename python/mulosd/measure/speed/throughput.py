"""Images a second and latency with so many requests in flight: a closed loop around `Engine.step`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.decoding.base import Decoder
from ...engine.decoding.spec import spell
from ..machine import weights_of
from ..rows import rows_of
from ..run import origin
from ..statistics import spread
from ..table import figure, labels, named, table

if TYPE_CHECKING:
    from rich.table import Table

    from ...engine.engine import Engine

PERCENTILES = (50, 90, 99)

Progress = Callable[[str, int, int], None]


@dataclass
class Cell:
    """A decoder at a number of requests in flight, and what was measured."""

    decoder: Decoder
    batch: int
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    steps: int = 0


def bench_throughput(
    engine: Engine,
    prompts: Sequence[str],
    decoders: Sequence[Decoder],
    batches: Sequence[int],
    *,
    images: int = 16,
    rounds: int = 2,
    stagger: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every decoder with every number of requests in flight, cells taking turns in every round.

    Args:
        engine: its scheduler must allow the largest batch.
        prompts: taken in turn, each request with another seed.
        decoders: resolved.
        batches: requests in flight; a finished one makes room for the next at once.
        images: finished requests a round and cell, raised to a multiple of the batch.
        rounds: how often.
        stagger: steps between the first requests; 0 begins them together, so that they stay near the same phase.
        seed: of the first request.
        progress: called with (what, done, total).

    Returns:
        A report of plain values, ready for JSON.

    Raises:
        ValueError: a number below 1, no decoders, or a batch beyond what the scheduler allows.
    """
    if not decoders or not batches or min(batches) < 1 or images < 1 or rounds < 1 or stagger < 0 or not prompts:
        raise ValueError("decoders, batches, prompts, images and rounds must be at least 1, and stagger not negative")
    if max(batches) > engine.config.max_running:
        raise ValueError(
            f"{max(batches)} requests in flight need SchedulerConfig(max_running={max(batches)}), the engine has "
            f"{engine.config.max_running}"
        )
    warnings = engine.check_prompts(prompts)
    cells = [Cell(decoder, batch) for decoder in decoders for batch in dict.fromkeys(batches)]
    for cell in cells:
        closed_loop(engine, cell, prompts, 1, 0, seed)
        cell.rates, cell.latencies, cell.forwards = [], [], []
    for turn in range(rounds):
        for n, cell in enumerate(cells):
            closed_loop(engine, cell, prompts, images, stagger, seed + 1 + turn * 10_000)
            if progress is not None:
                progress("rounds", turn * len(cells) + n + 1, rounds * len(cells))
    return {
        **origin(engine, engine.family.sampling, seed),
        "dtype": str(engine.family.ar.output.weight.dtype).removeprefix("torch."),
        "stagger": stagger,
        "notes": warnings,
        "rows": describe(cells),
    }


def closed_loop(engine: Engine, cell: Cell, prompts: Sequence[str], images: int, stagger: int, seed: int) -> None:
    """Keep `cell.batch` requests in flight; the first so many to finish are not counted, and the last are dropped."""
    wanted = -(-images // cell.batch) * cell.batch
    # In between, as much work is begun before the window and finished in it as is begun in it and dropped.
    skipped = cell.batch
    begun: dict[int, float] = {}
    finished = made = steps = 0

    def submit() -> None:
        nonlocal made
        prompt = prompts[made % len(prompts)]
        now = time.perf_counter()
        begun[engine.add_request(prompt, decoder=cell.decoder, seed=seed + made)] = now
        made += 1

    start = 0.0
    try:
        while finished < wanted + skipped:
            while len(begun) < cell.batch and (made >= cell.batch or made * stagger <= steps):
                submit()
            for update in engine.step():
                if update.error is not None:
                    raise update.error
                if update.kind != "final" or update.stats is None:
                    continue
                now = time.perf_counter()
                latency = now - begun.pop(update.request)
                finished += 1
                if finished > skipped:
                    cell.latencies.append(latency)
                    cell.forwards.append(sum(update.stats.forwards.values()))
                if finished == skipped:
                    start = now
            steps += 1
    finally:
        for number in begun:
            engine.abort(number)
    cell.rates.append(wanted / (time.perf_counter() - start))
    cell.steps = steps


def describe(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row a cell, compared with the smallest batch of its decoder."""
    rows = []
    for cell in cells:
        rate = spread(cell.rates)
        least = min((c for c in cells if c.decoder == cell.decoder), key=lambda c: c.batch)
        latency = {f"p{p}": float(np.percentile(cell.latencies, p)) for p in PERCENTILES}
        rows.append(
            {
                "decoder": cell.decoder.name,
                "spec": spell(cell.decoder),
                "settings": cell.decoder.settings(),
                "batch": cell.batch,
                "images_per_second": {**rate, "runs": len(cell.rates)},
                "gain": rate["median"] / spread(least.rates)["median"],
                "latency": {**latency, "images": len(cell.latencies)},
                "forwards": float(np.mean(cell.forwards)),
            }
        )
    return rows


def throughput_table(report: dict[str, Any]) -> Table:
    """The rows as a table."""
    rows = rows_of(report)
    columns = [
        named(labels(rows), rows),
        figure("batch", "batch", "{value:.0f}"),
        figure("images/s", "images_per_second"),
        figure("gain", "gain", "{value:.2f}"),
        *(figure(f"p{p}", f"latency.p{p}") for p in PERCENTILES),
    ]
    return table(
        rows,
        columns,
        f"{report['family']}, {weights_of(report)}: requests in flight, closed loop",
        f"{report['device']}. Latency in seconds; gain over the smallest batch of the decoder",
        gap=1,
    )
