"""How near the verify pass of MuLo-SD comes to plain products of its shapes on a CPU, by the parts of a layer.

    python benchmarks/verify_pass.py --threads 2 --rounds 5 --json verify_pass.json

The pass is that of `--decoder` while it draws an image with guidance, in the engine's float32 and with a verify pass
in bfloat16; beside its projections and its head stand products of the very shapes on the same cores, by `F.linear` or
oneDNN, in the type of the pass or in float32, whichever is fastest. All take turns; the least of the rounds counts,
whose ratios say more than its seconds where other programs run. Only passes of at least 512 tokens are counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from mulosd.engine import runner
from mulosd.engine.atomic import write_json
from mulosd.engine.batch import Batch, Feed
from mulosd.engine.engine import Engine
from mulosd.engine.linear_choice import layers_of
from mulosd.engine.models import layers
from mulosd.engine.models.ar_model import ARModel
from mulosd.measure.ceilings import fastest_product, measured_ceilings
from mulosd.measure.machine import commit, device_name, now, versions

PROMPT = "a cat left of a guitar on a yellow background"
LEAST_TOKENS = 512
PARTS = ("projections", "attention", "head", "rest")


class Meter:
    """Seconds and operations of the verify passes of an image, by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.flops = dict.fromkeys(PARTS, 0.0)
        self.rows: list[int] = []
        self.on = False

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, whose time within a verify pass is that of a part and no other's."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return call(*args, **kwargs)
            begun = time.perf_counter()
            found = call(*args, **kwargs)
            took = time.perf_counter() - begun
            self.seconds[part] += took
            self.seconds["rest"] -= took
            return found

        return measured

    def forward(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a model, counted where it is a verify pass."""

        def measured(model: Any, feeds: Sequence[Feed]) -> Any:
            if len(feeds) != 1 or feeds[0].role != "verify" or feeds[0].count < LEAST_TOKENS:
                return call(model, feeds)
            [feed] = feeds
            begun, self.on = time.perf_counter(), True
            try:
                found = call(model, feeds)
            finally:
                self.on = False
            self.seconds["rest"] += time.perf_counter() - begun
            self.count(model, feed)
            return found

        return measured

    def count(self, model: ARModel, feed: Feed) -> None:
        """Add the operations of a pass: every product, and of attention what a query sees."""
        rows, config = feed.lane.branches * feed.count, model.config
        weights = sum(layer.weight.numel() for block in model.blocks for layer in layers_of(block))
        first = feed.lane.cond_len + min(feed.positions)
        seen = feed.count * first + feed.count * (feed.count + 1) // 2
        self.flops["projections"] += 2 * rows * weights
        self.flops["attention"] += 4 * feed.lane.branches * config.n_layers * config.n_heads * config.head_dim * seen
        self.flops["head"] += 2 * feed.lane.branches * len(feed.wanted()) * model.output.weight.numel()
        self.rows.append(rows)


@contextmanager
def metered() -> Iterator[Meter]:
    """Meter the verify passes within."""
    meter = Meter()
    with (
        patch.object(runner, "forward", meter.forward(runner.forward)),
        patch.object(layers, "project", meter.timed("projections", layers.project)),
        patch.object(Batch, "attend", meter.timed("attention", Batch.attend)),
        patch.object(ARModel, "logits", meter.timed("head", ARModel.logits)),
    ):
        yield meter


def plain(model: ARModel, rows: int, dtype: torch.dtype, seconds: float) -> dict[str, float]:
    """Seconds of plain products of the shapes of a pass: of all layers, and of the head.

    In the type of the pass, or in float32 where that is faster: on CPUs without instructions for the type.
    """
    found: dict[torch.Size, float] = {}

    def least(weight: torch.Tensor) -> float:
        shape = weight.shape
        if shape not in found:
            x, weight = torch.randn(rows, shape[1]), torch.randn(shape)
            tried = {dtype, torch.float32}
            found[shape] = min(fastest_product(x.to(t), weight.to(t), seconds / len(tried))[0] for t in tried)
        return found[shape]

    with torch.inference_mode():
        own = sum(least(layer.weight) for block in model.blocks for layer in layers_of(block))
        return {"projections": own, "head": least(model.output.weight)}


def row(kind: str, meter: Meter, beside: dict[str, float], part: str) -> dict[str, Any]:
    """What one part of a pass took, and what plain products of its shapes take."""
    whole = part == "all"
    seconds = sum(meter.seconds.values()) if whole else meter.seconds[part]
    flops = sum(meter.flops.values()) if whole else meter.flops[part]
    other = beside.get(part)
    return {
        "dtype": kind, "part": part, "seconds": seconds, "flops": flops, "gflop_per_s": flops / seconds / 1e9,
        "plain_seconds": other, "plain_gflop_per_s": None if other is None else flops / other / 1e9,
        "share_of_plain": None if other is None else other / seconds,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="emoji")
    parser.add_argument("--decoder", default="mulo", help="one that takes verify_dtype")
    parser.add_argument("--linear", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    engine = Engine.from_pretrained(arguments.family, device="cpu", linear=arguments.linear)
    model = engine.family.model(engine.family.grids[-1])
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    least: dict[str, Meter] = {}
    beside: dict[str, dict[str, float]] = {}
    for turn in range(arguments.rounds + 1):
        for kind, dtype in kinds.items():
            with metered() as meter:
                engine.generate(PROMPT, decoder=f"{arguments.decoder}:verify_dtype={kind}", seed=7)
            if not meter.rows:
                parser.error(f"{arguments.decoder} has no verify pass of at least {LEAST_TOKENS} tokens in this family")
            if not turn:  # the first is a warm-up
                least[kind], beside[kind] = meter, plain(model, meter.rows[0], dtype, 0.05)
                continue
            for part in PARTS:
                before = least[kind].seconds[part] if turn > 1 else float("inf")
                least[kind].seconds[part] = min(before, meter.seconds[part])
            again = plain(model, meter.rows[0], dtype, 0.05)
            beside[kind] = {part: min(beside[kind][part], again[part]) for part in again}
    rows = [row(kind, least[kind], beside[kind], part) for kind in kinds for part in (*PARTS[:3], "rest", "all")]
    ceilings = measured_ceilings()
    print(ceilings)
    print(f"{least['float32'].rows[0]} rows, {model.config.n_layers} layers, linear={arguments.linear}")
    print("verify in  part             ms   GFLOP/s   plain ms  plain GFLOP/s  share of plain")
    for one in rows:
        other = "" if one["plain_seconds"] is None else (
            f"{1e3 * one['plain_seconds']:10.2f} {one['plain_gflop_per_s']:14.1f} {one['share_of_plain']:15.0%}"
        )  # fmt: skip
        rate = f"{one['gflop_per_s']:9.1f}" if one["flops"] else f"{'-':>9s}"
        print(f"{one['dtype']:10s} {one['part']:11s} {1e3 * one['seconds']:7.2f} {rate} {other}")
    if arguments.json is not None:
        about = {"device": device_name(torch.device("cpu")), "versions": versions(), "commit": commit(), "date": now()}
        write_json(arguments.json, {**about, "ceilings": ceilings.to_dict(), "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
