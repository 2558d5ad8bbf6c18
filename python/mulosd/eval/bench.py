"""The decoding benchmark: time, work and quality of each decoder on the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.spec import DECODERS as SPECS
from ..engine.decoding.spec import parse
from .accuracy import Score, summarise
from .judge import Judge
from .kid import MIN_SET
from .machine import commit, device_name, versions
from .reader import as_array
from .statistics import bootstrap_ratio, spread

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.family import Family
    from ..engine.sampling import SamplingParams
    from ..engine.stats import GenerationStats

DECODERS = ("serial", "draft-only", "mulo")
TAU_FACTORS = (0.25, 1.0, 4.0)
MIN_RUNS = 5
NLL_BATCH = 8

Progress = Callable[[str, int, int], None]


@dataclass
class Sample:
    """What one row of the benchmark produced; lists run over prompts, timings over timed runs."""

    decoder: Decoder
    seconds: list[float] = field(default_factory=list)
    timed: list[GenerationStats] = field(default_factory=list)
    stats: list[GenerationStats] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    nll: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scores: list[Score] | None = None


def plan_rows(
    family: Family, decoders: Sequence[str] = DECODERS, taus: Sequence[float] | None = None, mulo: MuloSD | None = None
) -> list[Decoder]:
    """The decoders of a benchmark, every setting resolved.

    Args:
        family: to be decoded.
        decoders: as `decoding.parse` reads them, such as "zipar:window=4".
        taus: values for every "mulo" that states none; None takes the calibrated one (or that of `mulo`) times 1/4, 1
            and 4.
        mulo: the other settings of a plain "mulo"; a plain "draft-only" shares its scale and up-sampler.

    Raises:
        ValueError: no or unknown names, an empty list of taus, or a setting that the family lacks.
    """
    if not decoders:
        raise ValueError(f"decoders must be chosen from {', '.join(SPECS)}, got none")
    base = mulo or MuloSD()
    rows: list[Decoder] = []
    for text in decoders:
        decoder = parse(text)
        if text == "draft-only":
            decoder = DraftOnly(base.scale, base.upsampler)
        if isinstance(decoder, MuloSD):
            decoder = base if text == "mulo" else replace(decoder, scale=decoder.scale or base.scale)
            if text == "mulo" or decoder.tau is None:
                values = taus
                if values is None:
                    calibrated = decoder.resolve(family).tau or 0.0
                    values = [calibrated * factor for factor in TAU_FACTORS]
                if not values:
                    raise ValueError("the decoder 'mulo' needs at least one value of tau")
                rows += [replace(decoder, tau=float(tau)).resolve(family) for tau in dict.fromkeys(values)]
                continue
        rows.append(decoder.resolve(family))
    return list(dict.fromkeys(rows))


def bench_decode(
    engine: Engine,
    prompts: Sequence[str],
    decoders: Sequence[str] = DECODERS,
    taus: Sequence[float] | None = None,
    *,
    mulo: MuloSD | None = None,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    timing_images: int | None = None,
    batch_for_quality: int = 1,
    real_scenes: int = 256,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure decoders on the same prompts with the same seeds.

    Timed pictures are generated one at a time, and decoders take turns at each prompt, so that a machine whose speed
    drifts slows them all alike. A timed picture is also the quality sample of its prompt. docs/evaluation.md says what
    each figure means.

    Args:
        engine: a loaded engine.
        prompts: one picture each; prompt i has seed `seed` + i in every decoder.
        decoders: names, or names with settings, see `plan_rows`.
        taus: values for "mulo", see `plan_rows`.
        mulo: other settings of "mulo", see `plan_rows`.
        sampling: None takes the family's defaults.
        seed: of the first prompt, and of the real scenes.
        timing_images: prompts that are timed, the first ones; None is all. With fewer than 5, prompts are timed again
            until there are 5 runs.
        batch_for_quality: pictures generated together for prompts that are not timed.
        real_scenes: real pictures behind KID and the reader's own accuracy.
        progress: called with (what, done, total).

    Returns:
        A report of plain values, ready for JSON.

    Raises:
        ValueError: no prompts or an empty one, or settings that are impossible or that the family lacks.
    """
    if not prompts:
        raise ValueError("the benchmark needs at least one prompt")
    if batch_for_quality < 1:
        raise ValueError(f"batch_for_quality must be at least 1, got {batch_for_quality}")
    if timing_images is not None and timing_images < 1:
        raise ValueError(f"timing_images must be at least 1, got {timing_images}")
    prompts = list(prompts)
    warnings = engine.check_prompts(prompts)
    samples = [Sample(decoder) for decoder in plan_rows(engine.family, decoders, taus, mulo)]
    params = engine.family.sampling if sampling is None else sampling
    timed = min(len(prompts), timing_images or len(prompts))
    total = len(samples) * (max(timed, MIN_RUNS) + len(prompts) - timed)
    done = 0

    def advance(sample: Sample, n: int) -> None:
        nonlocal done
        done += n
        if progress is not None:
            progress(sample.decoder.name, done, total)

    for sample in samples:
        engine.generate([prompts[0]], decoder=sample.decoder, sampling=params, seed=[seed])
    for run, i in enumerate(islice(cycle(range(timed)), max(timed, MIN_RUNS))):
        for sample in samples:
            begun = time.perf_counter()
            result = engine.generate([prompts[i]], decoder=sample.decoder, sampling=params, seed=[seed + i])
            sample.seconds.append(time.perf_counter() - begun)
            sample.timed += result.stats
            if run == i:
                keep(sample, result)
            advance(sample, 1)
    for start in range(timed, len(prompts), batch_for_quality):
        part = prompts[start : start + batch_for_quality]
        seeds = [seed + start + n for n in range(len(part))]
        for sample in samples:
            result = engine.generate(
                part, decoder=sample.decoder, sampling=params, seed=seeds, batch_size=batch_for_quality
            )
            keep(sample, result)
            advance(sample, len(part))

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
        "device": device_name(torch.device(engine.family.device)),
        "versions": versions(),
        "commit": commit(),
        "family": engine.family.name,
        "prompts": len(prompts),
        "seed": seed,
        "sampling": params.to_dict(),
        "timing": {"runs": max(timed, MIN_RUNS), "batch": 1, "warm_up": 1},
        "real_scenes": real_scenes,
        **judge.references(),
        "notes": notes,
        "rows": rows,
    }


def keep(sample: Sample, result: Any) -> None:
    """Add a generation to the quality sample; pictures as arrays, which are smaller and comparable."""
    sample.stats += result.stats
    sample.images += list(as_array(result.images))
    sample.tokens.append(result.tokens)


def mean_by_key(dictionaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each key, absent ones counting as zero."""
    keys = dict.fromkeys(key for d in dictionaries for key in d)
    return {key: float(np.mean([d.get(key, 0) for d in dictionaries])) for key in keys}


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def describe(engine: Engine, prompts: Sequence[str], sample: Sample, judge: Judge) -> dict[str, Any]:
    """One row of the report; fills the sample's likelihoods and scores."""
    tokens, images = torch.cat(sample.tokens), np.stack(sample.images)
    parts = [
        engine.nll(prompts[start : start + NLL_BATCH], tokens[start : start + NLL_BATCH])
        for start in range(0, len(prompts), NLL_BATCH)
    ]
    sample.nll = torch.cat(parts).double().numpy()
    sample.scores = judge.scores(prompts, images)
    return {
        "decoder": sample.decoder.name,
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
        "accuracy": None if sample.scores is None else summarise(sample.scores),
        "kid": judge.kid(images),
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


def difference(sample: Sample, base: Sample) -> dict[str, Any]:
    """Object accuracy and NLL of a sample minus those of another, with intervals over prompts."""

    def over_prompts(differences: NDArray[np.float64], weights: NDArray[np.float64]) -> dict[str, Any]:
        return {
            "value": float(differences.sum() / weights.sum()),
            "ci95": list(bootstrap_ratio(differences, weights)),
        }

    result: dict[str, Any] = {"accuracy": None, "nll": over_prompts(sample.nll - base.nll, np.ones(len(sample.nll)))}
    if sample.scores is not None and base.scores is not None:
        asked = np.asarray([float(s.asked) for s in sample.scores])
        if asked.sum() > 0:
            found = [float(a.found - b.found) for a, b in zip(sample.scores, base.scores, strict=True)]
            result["accuracy"] = over_prompts(np.asarray(found), asked)
    return result
