"""How fast the engine is on a CPU, in one table: beside the plain loop, beside the floor, and with each decoder.

    python benchmarks/cpu_table.py --json benchmarks/results/cpu_table.json

Four parts, all in turns, the same image of each a round behind one that warms up; the least of the rounds counts. It is
made to end within eight minutes on two cores at rest. `--part` takes some of them:

loop      LlamaGen-B's sizes at 256 px, random weights, one thread: `Serial` with float32, bfloat16 and int8 weights
          beside the eager loop as LlamaGen has it, of float32 and `F.linear` (`mulosd bench synthetic`)
serial    the bundled family, `Serial`, `--threads` threads: the share of the floor that its weights have
mulo      the default decoder with the verify pass in bfloat16, beside `Serial` in float32
decoders  every decoder with linear="auto" beside linear="torch"
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mulosd.engine.atomic import write_json
from mulosd.engine.decoding import DECODERS
from mulosd.engine.decoding.base import Decoder
from mulosd.engine.decoding.spec import parse, spell
from mulosd.engine.engine import Engine, GenerationResult
from mulosd.engine.models.quantized import multiplies_bfloat16
from mulosd.engine.sampling import SamplingParams
from mulosd.measure.ceilings import Ceilings, measured_ceilings
from mulosd.measure.image_floor import ceilings_of, image_floor, weights_of
from mulosd.measure.machine import commit, device_name, now, versions
from mulosd.measure.speed.architectures import ARCHITECTURES, random_weights
from mulosd.measure.speed.synthetic import baseline_contestants, decoder_contestant

PARTS = ("loop", "serial", "mulo", "decoders")
SEED = 7
PROMPT = "a cat left of a guitar on a yellow background"
KINDS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
}
# What the table asks for: ratios at least or at most, shares at least, seconds at most.
LOOP = {"float32": 1.3, "bfloat16": 2.0}
SHARE, MULO_SECONDS, MULO_RATIO, SLOWER = 0.7, 0.15, 14.0, 1.03


@dataclass
class Timed:
    """The least seconds, and the least CPU seconds, of what is called in turns; and what its last call gave."""

    call: Callable[[], Any]
    seconds: float = float("inf")
    cpu_seconds: float = float("inf")
    result: Any = None
    all: list[float] = field(default_factory=list)


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Timed]:
    """Call one after the other, `rounds` times behind one that warms up."""
    found = {name: Timed(call) for name, call in calls.items()}
    for turn in range(rounds + 1):
        for name, one in found.items():
            wall, cpu = time.perf_counter(), time.process_time()
            one.result = one.call()
            took, worked = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                one.seconds, one.cpu_seconds = min(one.seconds, took), min(one.cpu_seconds, worked)
                one.all.append(took)
            print(f"  {name}: {took:.2f} s", file=sys.stderr, flush=True)
    return found


def row(part: str, name: str, timed: Timed, threads: int, **about: Any) -> dict[str, Any]:
    """A row of the report; `met` says whether it is as wanted, where something is."""
    return {
        "part": part, "name": name, "threads": threads, "seconds": timed.seconds, "cpu_seconds": timed.cpu_seconds,
        "all_seconds": timed.all, **about,
    }  # fmt: skip


def drawing(engine: Engine, decoder: str | Decoder) -> Callable[[], GenerationResult]:
    return lambda: engine.generate(PROMPT, decoder=decoder, seed=SEED)


def loop_rows(arch: str, grid: int, rounds: int) -> tuple[list[dict[str, Any]], Ceilings]:
    """`Serial` of each kind of weights beside the plain loop, one thread."""
    torch.set_num_threads(1)
    vocab = ARCHITECTURES[arch].vocab
    sampling = SamplingParams(cfg_scale=4.0, top_k=1000 if vocab > 1000 else 0)
    engines = {kind: Engine(random_weights(arch, grid), **how) for kind, how in KINDS.items()}
    # The loop has weights of its own, which no choice has touched.
    [loop] = baseline_contestants(Engine(random_weights(arch, grid), linear="torch"), ["eager"], sampling)
    decoder = parse("serial")
    contestants = {
        kind: decoder_contestant(engine, decoder.resolve(engine.family), sampling) for kind, engine in engines.items()
    }
    found = in_turns({name: partial(one.make, SEED) for name, one in {"loop": loop, **contestants}.items()}, rounds)
    sizes = {kind: weights_of(engine.family.ar).bytes for kind, engine in engines.items()}
    ceilings = measured_ceilings(sorted(sizes.values()))
    rows = [row("loop", "loop float32", found["loop"], 1)]
    for kind, one in contestants.items():
        floor = sum(one.forwards.values()) * sizes[kind] / ceilings.bandwidth(sizes[kind])
        ratio = found["loop"].seconds / found[kind].seconds
        wanted = LOOP.get(kind)
        if kind == "bfloat16" and not multiplies_bfloat16():
            wanted = None
        rows.append(
            row("loop", f"serial {kind}", found[kind], 1, ratio=ratio, floor_share=floor / found[kind].seconds,
                wanted=f">= {wanted}x" if wanted else None, met=None if wanted is None else ratio >= wanted)
        )  # fmt: skip
    return rows, ceilings


def serial_rows(family: str, threads: int, rounds: int) -> tuple[list[dict[str, Any]], Ceilings]:
    """`Serial` of each kind of weights beside its floor."""
    torch.set_num_threads(threads)
    engines = {kind: Engine.from_pretrained(family, device="cpu", **how) for kind, how in KINDS.items()}
    found = in_turns({kind: drawing(engine, "serial") for kind, engine in engines.items()}, rounds)
    ceilings = ceilings_of(list(engines.values()))
    assert ceilings is not None
    rows = []
    for kind, engine in engines.items():
        one, decoder = found[kind], parse("serial").resolve(engine.family)
        guided = engine.family.sampling.guided
        floor = image_floor(engine, decoder, one.result.stats, ceilings, guided=guided, seconds=one.seconds)
        held = kind in ("float32", "bfloat16")
        rows.append(
            row("serial", f"serial {kind}", one, threads, floor_share=floor["share"],
                wanted=f">= {SHARE:.0%} of the floor" if held else None, met=floor["share"] >= SHARE if held else None)
        )  # fmt: skip
    return rows, ceilings


def mulo_rows(family: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """The default decoder with a verify pass in bfloat16 beside `Serial`, both of float32 engines."""
    torch.set_num_threads(threads)
    engine = Engine.from_pretrained(family, device="cpu")
    calls = {"serial float32": drawing(engine, "serial")}
    for text in ("mulo:verify_dtype=bfloat16", "mulo"):
        calls[text] = drawing(engine, text)
    found = in_turns(calls, rounds)
    base, rows = found["serial float32"], [row("mulo", "serial float32", found["serial float32"], threads)]
    for text in list(calls)[1:]:
        one = found[text]
        ratio, held = base.seconds / one.seconds, "bfloat16" in text
        met = (one.seconds <= MULO_SECONDS and ratio >= MULO_RATIO) if held else None
        wanted = f"<= {MULO_SECONDS} s, >= {MULO_RATIO:g}x" if held else None
        rows.append(row("mulo", text, one, threads, ratio=ratio, wanted=wanted, met=met))
    return rows


def decoder_rows(family: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Every decoder that the family has with what was chosen, beside `F.linear` always."""
    torch.set_num_threads(threads)
    engines = {way: Engine.from_pretrained(family, device="cpu", linear=way) for way in ("torch", "auto")}
    calls, rows = {}, []
    for name in DECODERS:
        try:
            decoder = parse(name).resolve(engines["auto"].family)
        except ValueError as reason:
            print(f"  {name} is left out: {reason}", file=sys.stderr)
            continue
        for way, engine in engines.items():
            calls[f"{spell(decoder)} {way}"] = drawing(engine, decoder)
    found = in_turns(calls, rounds)
    for name in calls:
        if not name.endswith(" auto"):
            continue
        bare = name.removesuffix(" auto")
        auto, plain = found[name], found[f"{bare} torch"]
        slower = auto.seconds / plain.seconds
        rows.append(row("decoders", f"{bare} torch", plain, threads))
        rows.append(
            row("decoders", name, auto, threads, ratio=1 / slower, wanted=f"<= {SLOWER}x the seconds of torch",
                met=slower <= SLOWER)
        )  # fmt: skip
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'part':9s} {'what':58s} {'thr':>3s} {'s/image':>8s} {'CPU s':>7s} {'ratio':>6s} {'floor':>6s}  wanted"]
    for one in rows:
        ratio = f"{one['ratio']:.2f}" if one.get("ratio") is not None else "-"
        share = f"{one['floor_share']:.0%}" if one.get("floor_share") is not None else "-"
        wanted = f"{one['wanted']}: {'yes' if one['met'] else 'no'}" if one.get("wanted") else ""
        lines.append(
            f"{one['part']:9s} {one['name'][:58]:58s} {one['threads']:3d} {one['seconds']:8.3f} "
            f"{one['cpu_seconds']:7.3f} {ratio:>6s} {share:>6s}  {wanted}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be given several times")
    parser.add_argument("--family", default="emoji", help="of the parts serial, mulo and decoders")
    parser.add_argument("--arch", default="llamagen-b", choices=ARCHITECTURES, help="of the part loop")
    parser.add_argument("--grid", type=int, default=16, help="side in tokens, of the part loop")
    parser.add_argument("--threads", type=int, default=2, help="of all parts but loop")
    parser.add_argument("--rounds", type=int, default=3, help="of all parts but loop, which has one less")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args(argv)
    if min(arguments.rounds, arguments.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    parts = arguments.part or PARTS
    of = arguments.family, arguments.threads, arguments.rounds
    rows: list[dict[str, Any]] = []
    ceilings: list[Ceilings] = []
    before = torch.get_num_threads()
    try:
        for part in PARTS:
            if part not in parts:
                continue
            print(part, file=sys.stderr, flush=True)
            if part == "loop":
                found, limit = loop_rows(arguments.arch, arguments.grid, max(1, arguments.rounds - 1))
                ceilings.append(limit)
            elif part == "serial":
                found, limit = serial_rows(*of)
                ceilings.append(limit)
            else:
                found = mulo_rows(*of) if part == "mulo" else decoder_rows(*of)
            rows += found
        device = device_name(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    print("\n".join(map(str, ceilings)))
    print(shown(rows))
    if arguments.json is not None:
        write_json(
            arguments.json,
            {
                "device": device, "versions": versions(), "commit": commit(), "date": now(),
                "arch": {"name": arguments.arch, "grid": arguments.grid}, "family": arguments.family,
                "rounds": arguments.rounds, "ceilings": [one.to_dict() for one in ceilings], "rows": rows,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
