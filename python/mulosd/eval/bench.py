"""The decoding benchmark: time, work and quality of each decoder on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..engine.decoding.base import Decoder
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.spec import spell
from .accuracy import summarise
from .journal import Journal
from .judge import Judge
from .kid import MIN_SET
from .samples import Job, Progress, Sample, difference, likelihoods, mean_by_key, mean_or_none, origin, run_jobs
from ..measure.statistics import bootstrap_ratio, spread
from .sweeps import DECODERS, plan_rows

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.sampling import SamplingParams

MIN_RUNS = 5


def bench_decode(
    engine: Engine,
    prompts: Sequence[str],
    decoders: Sequence[str] = DECODERS,
    sweeps: Mapping[str, Sequence[float]] | None = None,
    *,
    mulo: MuloSD | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Measure decoders by name: `measure` of `plan_rows`.

    Args:
        engine, prompts: see `measure`.
        decoders, sweeps, mulo: see `plan_rows`.
        how: the other arguments of `measure`.

    Raises:
        ValueError: as those two.
    """
    return measure(engine, prompts, plan_rows(engine.family, decoders, sweeps, mulo), **how)


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

    Timed pictures are generated one at a time, and decoders take turns at each prompt, so that a machine whose speed
    drifts slows them all alike. A timed picture is also the quality sample of its prompt. docs/evaluation.md says what
    each figure means.

    Args:
        engine: a loaded engine.
        prompts: one picture each; prompt i has seed `seed` + i in every decoder.
        decoders: resolved.
        sampling: None takes the family's defaults.
        seed: of the first prompt, and of the real scenes.
        timing_images: prompts that are timed, the first ones; None is all. With fewer than 5, prompts are timed again
            until there are 5 runs.
        batch_for_quality: pictures generated together for prompts that are not timed.
        real_scenes: real pictures behind KID and the reader's own accuracy.
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
    if batch_for_quality < 1:
        raise ValueError(f"batch_for_quality must be at least 1, got {batch_for_quality}")
    if timing_images is not None and timing_images < 1:
        raise ValueError(f"timing_images must be at least 1, got {timing_images}")
    prompts = list(prompts)
    warnings = engine.check_prompts(prompts)
    if engines is None:
        samples = [Sample(decoder) for decoder in decoders]
    else:
        samples = [Sample(decoder, engine=by) for decoder, (_, by) in zip(decoders, engines, strict=True)]
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
    journal = Journal(runs, {**about, **plan})
    run_jobs(engine, prompts, jobs, samples, params, seed, journal, progress)

    judge = Judge(engine, real_scenes=real_scenes, seed=seed)
    rows = []
    for n, sample in enumerate(samples, start=1):
        rows.append(describe(engine, prompts, sample, judge))
        if progress is not None:
            progress("quality", n, len(samples))
    compare(rows, samples)
    notes = warnings + judge.notes
    if len(prompts) < MIN_SET:
        notes.append(f"kid is null: it needs at least {MIN_SET} pictures, there are {len(prompts)} prompts")
    return {
        **about,
        "prompts": len(prompts),
        "timing": {"runs": turns, "batch": 1, "warm_up": 1},
        "real_scenes": real_scenes if judge.reference is None else len(judge.reference.real),
        **judge.references(),
        "notes": notes,
        "rows": rows,
    }


def describe(engine: Engine, prompts: Sequence[str], sample: Sample, judge: Judge) -> dict[str, Any]:
    """One row of the report; fills the sample's likelihoods and scores."""
    pictures = judge.see(np.stack(sample.images))
    sample.nll = likelihoods(engine, prompts, torch.cat(sample.tokens))
    sample.scores = judge.scores(prompts, pictures)
    return {
        "decoder": sample.decoder.name,
        "spec": spell(sample.decoder),
        "settings": sample.decoder.settings(),
        "seconds_per_image": {**spread(sample.seconds), "runs": len(sample.seconds)},
        "stages": mean_by_key([s.seconds for s in sample.timed]),
        # Of timed pictures only: forwards of a batch are shared by its pictures.
        "forwards": mean_by_key([s.forwards for s in sample.timed]),
        "fed": mean_by_key([s.fed for s in sample.timed]),
        "rejection": mean_or_none([s.rejection for s in sample.stats]),
        "coverage": mean_or_none([s.coverage for s in sample.stats]),
        "accepted": mean_or_none([s.accepted for s in sample.stats]),
        "nll": float(sample.nll.mean()),
        "nll_ci95": list(bootstrap_ratio(sample.nll, np.ones(len(sample.nll)))),
        "accuracy": None if sample.scores is None else summarise(sample.scores),
        "kid": judge.kid(pictures),
    }


def compare(rows: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> None:
    """Add to each row its speed-up over serial, and its differences to serial and draft-only, prompt by prompt."""
    # The first of a name is the one to compare with.
    by_name = {s.decoder.name: (s, row) for s, row in reversed(list(zip(samples, rows, strict=True)))}
    for sample, row in zip(samples, rows, strict=True):
        if "serial" in by_name:
            serial = by_name["serial"][1]["seconds_per_image"]["median"]
            row["speedup"] = serial / row["seconds_per_image"]["median"]
        row["paired"] = {
            name: difference(sample, by_name[name][0])
            for name in ("serial", "draft-only")
            if name in by_name and by_name[name][0] is not sample
        }
