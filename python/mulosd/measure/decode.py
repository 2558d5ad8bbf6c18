"""The decoding benchmark: time, work and quality of each decoder on the same prompts and seeds, knobs swept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..engine.decoding import DECODERS as SPECS
from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.spec import parse, spell
from .ceilings import Ceilings
from .image_floor import ceilings_of, image_floor
from .journal import open_runs
from .judge import Judge
from .machine import now
from .metrics.kid import MIN_SET
from .row_engines import engines_of, split
from .rows import Row, rows_of
from .run import Job, Progress, Sample, describe, difference, draw, origin
from .table import Column, figure, labels, named, table, total

if TYPE_CHECKING:
    from rich.table import Table

    from ..engine.engine import Engine
    from ..engine.family import Family
    from ..engine.sampling import SamplingParams

DECODERS = ("serial", "draft-only", "mulo", "zipar")
MIN_RUNS = 5
LARGEST_TAU = 0.05
TAUS = 4


def thresholds(decoder: Decoder, family: Family) -> list[float]:
    """Four values of tau, evenly apart in the logarithm: from the calibrated one to 0.05, or to 4 times it."""
    tau = getattr(decoder.resolve(family), "tau", None) or 0.0
    if tau <= 0:
        return [0.0]
    step = log(max(LARGEST_TAU, 4 * tau) / tau) / (TAUS - 1)
    # Three digits say as much and can be typed; the calibrated value itself stays as it is.
    return [tau, *(float(f"{tau * exp(step * i):.3g}") for i in range(1, TAUS))]


def windows(decoder: Decoder, family: Family) -> list[float]:
    """Powers of two below the width of the target grid; from there on a window is serial decoding."""
    return [w for w in (1, 2, 4, 8, 16) if w < family.grids[-1]]


@dataclass(frozen=True)
class Knob:
    """The setting by which a decoder trades quality for speed, and the values of it that a sweep takes."""

    setting: str
    kind: type
    values: Callable[[Decoder, Family], Sequence[float]]


KNOBS = {
    "mulo": Knob("tau", float, thresholds),
    "zipar": Knob("window", int, windows),
}


def plan_rows(
    family: Family,
    decoders: Sequence[str] = DECODERS,
    sweeps: Mapping[str, Sequence[float]] | None = None,
    mulo: MuloSD | None = None,
) -> list[Decoder]:
    """The decoders of a benchmark, every setting resolved.

    Args:
        family: to be decoded.
        decoders: as `decoding.parse` reads them, such as "zipar:window=4". One that does not state its knob
            (`KNOBS`) is swept over it; `tau=none` states it and takes the calibrated one.
        sweeps: values of the knobs by the decoder's name; what is left out takes those of `KNOBS`.
        mulo: the other settings of a plain "mulo"; a plain "draft-only" shares its scale and up-sampler.

    Raises:
        ValueError: no or unknown names, an empty list of values, or a setting that the family lacks.
    """
    if not decoders:
        raise ValueError(f"decoders must be chosen from {', '.join(SPECS)}, got none")
    given = sweeps or {}
    unknown = [name for name in given if name not in KNOBS]
    if unknown:
        knobs = ", ".join(f"{name} ({knob.setting})" for name, knob in KNOBS.items())
        raise ValueError(f"there is no sweep of {', '.join(unknown)}; decoders with a knob are {knobs}")
    base = mulo or MuloSD()
    rows: list[Decoder] = []
    for text in decoders:
        decoder = parse(text)
        if text == "draft-only":
            decoder = DraftOnly(base.scale, base.upsampler)
        elif text == "mulo":
            decoder = base
        knob = KNOBS.get(decoder.name)
        stated = {part.partition("=")[0] for part in text.split(":")[1:]}
        if knob is None or knob.setting in stated:
            rows.append(decoder.resolve(family))
            continue
        values = given[decoder.name] if decoder.name in given else knob.values(decoder, family)
        if not values:
            raise ValueError(f"the decoder {decoder.name!r} needs at least one value of {knob.setting}")
        wrong = [value for value in values if knob.kind(value) != value]
        if wrong:
            raise ValueError(f"{knob.setting} of {decoder.name!r} must be {knob.kind.__name__}, got {wrong[0]}")
        rows += [replace(decoder, **{knob.setting: knob.kind(v)}).resolve(family) for v in dict.fromkeys(values)]
    return list(dict.fromkeys(rows))


def bench_decode(
    engine: Engine,
    prompts: Sequence[str],
    decoders: Sequence[str] = DECODERS,
    sweeps: Mapping[str, Sequence[float]] | None = None,
    *,
    mulo: MuloSD | None = None,
    **how: Any,
) -> dict[str, Any]:
    """`measure` of the decoders of `plan_rows`; arguments and errors are those of the two.

    A decoder may also state a `dtype` or `quantization` for an engine of its own, "zipar:window=4:dtype=bfloat16" say:
    the family is loaded once more so, and what it draws is judged by `engine` like all the rest.
    """
    if not decoders:
        plan_rows(engine.family, decoders)  # which says what there is
    rows: list[tuple[Decoder, dict[str, str]]] = []
    for text in decoders:
        bare, own = split(text)
        rows += [(decoder, own) for decoder in plan_rows(engine.family, [bare], sweeps, mulo)]
    rows = [row for n, row in enumerate(rows) if row not in rows[:n]]
    engines = engines_of(engine, [own for _, own in rows])
    return measure(engine, prompts, [decoder for decoder, _ in rows], engines=engines, **how)


def measure(
    engine: Engine,
    prompts: Sequence[str],
    decoders: Sequence[Decoder],
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    timing_images: int | None = None,
    batch_for_quality: int = 1,
    real_scenes: int = 256,
    runs: Path | None = None,
    progress: Progress | None = None,
    engines: Sequence[tuple[str, Engine]] | None = None,
) -> dict[str, Any]:
    """Measure decoders on the same prompts with the same seeds.

    Timed images are drawn one at a time, and decoders take turns at each prompt, so that a machine whose speed drifts
    slows them all alike. A timed image is also the quality sample of its prompt. docs/evaluation.md says what each
    figure means.

    Args:
        engine: a loaded engine.
        prompts: one image each; prompt i has seed `seed` + i in every decoder.
        decoders: resolved.
        sampling: None takes the family's defaults.
        seed: of the first prompt, and of the real scenes.
        timing_images: prompts that are timed, the first ones; None is all. With fewer than 5, prompts are timed again
            until there are 5 runs.
        batch_for_quality: images drawn together for prompts that are not timed.
        real_scenes: real images behind KID and the reader's own accuracy.
        runs: a file that keeps every run as it is made; the same call takes up from it what an interrupted one left.
        progress: called with (what, done, total).
        engines: of each decoder, the engine that draws in place of `engine`, and what to call it in `runs`; its family
            has the same target and tokenizer.

    Returns:
        A report of plain values, ready for JSON.

    Raises:
        ValueError: no prompts or an empty one, impossible settings, or `runs` holds another measurement.
    """
    if not prompts:
        raise ValueError("the benchmark needs at least one prompt")
    for name, value in (("batch_for_quality", batch_for_quality), ("timing_images", timing_images)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    prompts = list(prompts)
    warnings = engine.check_prompts(prompts)
    by: Sequence[tuple[str, Engine | None]] = [("", None)] * len(decoders) if engines is None else engines
    samples = [Sample(decoder, own) for decoder, (_, own) in zip(decoders, by, strict=True)]
    params = engine.family.sampling if sampling is None else sampling
    timed = min(len(prompts), timing_images or len(prompts))
    about = origin(engine, params, seed)
    turns = max(timed, MIN_RUNS)
    jobs = [Job([i], timed=True, first=run == i) for run, i in enumerate(islice(cycle(range(timed)), turns))]
    for start in range(timed, len(prompts), batch_for_quality):
        jobs.append(Job(list(range(start, min(start + batch_for_quality, len(prompts))))))
    plan = {"prompts": prompts, "decoders": [spell(d) for d in decoders], "timed": turns, "batch": batch_for_quality}
    if engines is not None:
        plan["engines"] = [name for name, _ in engines]
    with open_runs(runs, {**about, **plan}) as journal:
        for drawn in draw(engine, prompts, jobs, samples, params, seed, journal, progress):
            samples[drawn.turn].add(jobs[drawn.number], drawn)

    judge = Judge(engine, real_scenes=real_scenes, seed=seed)
    rows = []
    for n, sample in enumerate(samples, start=1):
        rows.append(describe(engine, prompts, sample, judge))
        if progress is not None:
            progress("quality", n, len(samples))
    compare(rows, samples)
    ceilings = ceilings_of(list({id(e): e for e in (sample.engine or engine for sample in samples)}.values()))
    for row, sample in zip(rows, samples, strict=True):
        row.values["floor"] = None if ceilings is None else image_floor(
            sample.engine or engine, sample.decoder, sample.timed, ceilings,
            guided=params.guided, seconds=row.values["seconds_per_image"]["median"],
        )  # fmt: skip
    notes = warnings + judge.notes
    if len(prompts) < MIN_SET:
        notes.append(f"kid is null: it needs at least {MIN_SET} images, there are {len(prompts)} prompts")
    return {
        **about,
        "date": now(),
        "threads": torch.get_num_threads(),
        "ceilings": None if ceilings is None else ceilings.to_dict(),
        "prompts": len(prompts),
        "timing": {"runs": turns, "batch": 1, "warm_up": 1},
        "real_scenes": real_scenes if judge.reference is None else len(judge.reference.real),
        **judge.references(),
        "notes": notes,
        "rows": [row.to_dict() for row in rows],
    }


def compare(rows: Sequence[Row], samples: Sequence[Sample]) -> None:
    """Add to each row its speed-up over serial, and its differences to serial and draft-only, prompt by prompt."""
    # The first of a name is the one to compare with.
    first = {s.decoder.name: (s, row) for s, row in reversed(list(zip(samples, rows, strict=True)))}
    for sample, row in zip(samples, rows, strict=True):
        if "serial" in first:
            serial = first["serial"][1].values["seconds_per_image"]["median"]
            row.values["speedup"] = serial / row.values["seconds_per_image"]["median"]
        row.values["paired"] = {
            name: difference(sample, first[name][0])
            for name in ("serial", "draft-only")
            if name in first and first[name][0] is not sample
        }


def bench_columns(rows: Sequence[Row], names: Sequence[str]) -> list[Column]:
    """What the benchmark's table shows; whole scenes have the interval where there are some, to fit 80 columns."""
    share = "{value:.0f} ({low:.0f}-{high:.0f})"
    scenes = any(row.figure("scenes") for row in rows)
    return [
        named(names, rows),
        figure("s/image", "seconds_per_image", "{value:.3g}"),
        figure("p20-p80", "seconds_per_image", "{low:.2g}-{high:.2g}"),
        figure("×", "speedup", "{value:.2f}"),
        figure("floor", "floor.share", "{value:.0f} %", 100),
        total("fwd", "forwards"),
        figure("rej", "rejection", "{value:.1f}", 100),
        figure("res", "coverage", "{value:.1f}", 100),
        figure("NLL", "nll", "{value:.2f}"),
        figure("obj." if scenes else "objects", "accuracy", "{value:.0f}" if scenes else share, 100),
        *([figure("scenes", "scenes", share, 100)] if scenes else []),
        Column("KID", kid_text),
    ]


def ceilings_text(report: dict[str, Any]) -> str:
    """What a report says of the CPU and its ceilings; nothing for one of a GPU, or of an earlier version."""
    found = report.get("ceilings")
    return "" if found is None else str(Ceilings.from_dict(found))


def kid_text(row: Row) -> str | None:
    kid = row.values["kid"]
    return None if kid is None else f"{kid['value']:.0f}±{kid['std']:.0f}"


def bench_table(report: dict[str, Any], names: Sequence[tuple[str, dict[str, Any]]] | None = None) -> Table:
    """The rows of a report as one table.

    Args:
        report: of `measure`.
        names: rows with the names that they are to have; None shows all rows of the report by their label.
    """
    shown = rows_of(report) if names is None else rows_of({**report, "rows": [row for _, row in names]})
    texts = labels(shown) if names is None else [name for name, _ in names]
    return table(
        shown,
        bench_columns(shown, texts),
        f"{report['family']}: {report['prompts']} prompts, medians of {report['timing']['runs']} runs at batch 1",
        f"{ceilings_text(report) or report['device']}. ×: speed-up; floor: the least time of the forwards by these "
        "ceilings, of the time taken; fwd: forwards; rej, res: rejected, resampled, %; objects right and whole "
        "scenes right, %, with its 95 % interval; KID-Lite0 with its standard error; τ: tau, w: window, d: draft "
        "window, r: scale",
    )
