"""Pictures made for a measurement: decoders taking turns on the same prompts and seeds, with what each picture cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..engine.decoding.base import Decoder
from ..engine.stats import GenerationStats
from .accuracy import Score
from .journal import Journal
from ..measure.machine import commit, device_name, versions
from .reader import as_array
from ..measure.statistics import bootstrap_ratio

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.sampling import SamplingParams

NLL_BATCH = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """Prompts, by number, that are generated together; only one that is `first` counts as their quality sample."""

    prompts: list[int]
    timed: bool = False
    first: bool = True


@dataclass
class Sample:
    """What one decoder produced; lists run over prompts, timings over timed runs.

    `resampled` holds bool [B, H, W] parts where the decoder verifies candidates. `engine`, if any, draws in place of
    the one that is measured.
    """

    decoder: Decoder
    seconds: list[float] = field(default_factory=list)
    timed: list[GenerationStats] = field(default_factory=list)
    stats: list[GenerationStats] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    resampled: list[torch.Tensor] = field(default_factory=list)
    nll: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scores: list[Score] | None = None
    engine: Engine | None = None


def origin(engine: Engine, params: SamplingParams, seed: int) -> dict[str, Any]:
    """Where figures come from: device, versions, commit, family, sampling, seed."""
    return {
        "device": device_name(torch.device(engine.family.device)),
        "versions": versions(),
        "commit": commit(),
        "family": engine.family.name,
        "sampling": params.to_dict(),
        "seed": seed,
    }


def run_jobs(
    engine: Engine,
    prompts: Sequence[str],
    jobs: Sequence[Job],
    samples: Sequence[Sample],
    params: SamplingParams,
    seed: int,
    journal: Journal,
    progress: Progress | None,
) -> None:
    """Generate what the journal does not hold yet, decoders taking turns at each job; fills the samples."""
    total = len(samples) * sum(len(job.prompts) for job in jobs)
    if len(journal.records) < len(jobs) * len(samples):
        for sample in samples:
            (sample.engine or engine).generate([prompts[0]], decoder=sample.decoder, sampling=params, seed=[seed])
    done = 0
    for number, job in enumerate(jobs):
        for turn, sample in enumerate(samples):
            record = journal.records.get((number, turn))
            if record is None:
                begun = time.perf_counter()
                result = (sample.engine or engine).generate(
                    [prompts[i] for i in job.prompts],
                    decoder=sample.decoder,
                    sampling=params,
                    seed=[seed + i for i in job.prompts],
                    batch_size=len(job.prompts),
                )
                seconds = time.perf_counter() - begun
                stats, tokens, images, resampled = result.stats, result.tokens, result.images, result.resampled
                kept = {"seconds": seconds, "stats": [s.to_dict() for s in stats], "tokens": tokens.tolist()}
                if resampled is not None:
                    # The places, for most tokens are not resampled.
                    kept["resampled"] = [part.flatten().nonzero().flatten().tolist() for part in resampled]
                journal.add((number, turn), kept)
            else:
                seconds, stats = record["seconds"], [GenerationStats(**s) for s in record["stats"]]
                tokens = torch.tensor(record["tokens"])
                images = engine.to_images(tokens) if job.first else []
                resampled = None
                if "resampled" in record:
                    resampled = torch.zeros(tokens.shape, dtype=torch.bool)
                    for part, places in zip(resampled, record["resampled"], strict=True):
                        part.view(-1)[places] = True
            if job.timed:
                sample.seconds.append(seconds)
                sample.timed += stats
            if job.first:
                sample.stats += stats
                # Arrays are smaller than pictures.
                sample.images += list(as_array(images))
                sample.tokens.append(tokens)
                if resampled is not None:
                    sample.resampled.append(resampled)
            done += len(job.prompts)
            if progress is not None:
                progress(sample.decoder.name, done, total)


def likelihoods(engine: Engine, prompts: Sequence[str], tokens: torch.Tensor) -> NDArray[np.float64]:
    """Negative log-likelihood of each picture, nats a token, from tokens [B, H, W]."""
    parts = [
        engine.nll(prompts[start : start + NLL_BATCH], tokens[start : start + NLL_BATCH])
        for start in range(0, len(prompts), NLL_BATCH)
    ]
    return torch.cat(parts).double().numpy()


def mean_by_key(dictionaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each key, absent ones counting as zero."""
    keys = dict.fromkeys(key for d in dictionaries for key in d)
    return {key: float(np.mean([d.get(key, 0) for d in dictionaries])) for key in keys}


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def by_prompt(values: ArrayLike, group: int) -> NDArray[np.float64]:
    """Sums [prompts] of values [prompts * group], neighbours being pictures of one prompt."""
    return np.asarray(values, np.float64).reshape(-1, group).sum(axis=1)


def difference(sample: Sample, base: Sample, group: int = 1) -> dict[str, Any]:
    """Object accuracy and NLL of a sample minus those of another, with intervals over prompts.

    Args:
        sample, base: of the same prompts and seeds, with likelihoods and scores.
        group: neighbours that are pictures of one prompt, the unit of the intervals.
    """

    def over_prompts(differences: ArrayLike, weights: ArrayLike) -> dict[str, Any]:
        a, b = by_prompt(differences, group), by_prompt(weights, group)
        return {"value": float(a.sum() / b.sum()), "ci95": list(bootstrap_ratio(a, b))}

    result: dict[str, Any] = {"accuracy": None, "nll": over_prompts(sample.nll - base.nll, np.ones(len(sample.nll)))}
    if sample.scores is not None and base.scores is not None and any(s.asked for s in sample.scores):
        found = [float(a.found - b.found) for a, b in zip(sample.scores, base.scores, strict=True)]
        result["accuracy"] = over_prompts(found, [float(s.asked) for s in sample.scores])
    return result
