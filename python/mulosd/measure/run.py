"""The draw loop of every measurement: decoders in turns on the same prompts and seeds, timed, kept, resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ..engine.decoding.base import Decoder
from ..engine.decoding.spec import spell
from ..engine.stats import GenerationStats
from .images import as_array
from .journal import Journal
from .machine import commit, device_name, versions
from .metrics.accuracy import Score, summarise
from .metrics.diversity import mean_over_prompts, overall_diversity, prompt_diversities
from .metrics.kid import MIN_SET
from .metrics.seams import seam_energy
from .row_engines import stated
from .rows import Row
from .statistics import Estimate, bootstrap_ratio, spread

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.sampling import SamplingParams
    from .judge import Judge

NLL_BATCH = 8

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """Prompts, by number, that are drawn together; only one that is `first` counts as their quality sample."""

    prompts: list[int]
    timed: bool = False
    first: bool = True


@dataclass(frozen=True)
class Drawn:
    """What a decoder made of a job. `resampled` is bool [B, H, W] where the decoder verifies candidates."""

    number: int
    turn: int
    seconds: float
    stats: list[GenerationStats]
    tokens: torch.Tensor
    images: list[Image.Image]
    resampled: torch.Tensor | None


@dataclass
class Sample:
    """What one decoder made, and what was found of it.

    Attributes:
        decoder: resolved.
        engine: draws in place of the one that is measured, if any.
        label: the decoder as it was asked for.
        folder: name of the folder for its images.
        seconds, sizes: of each timed call, and its images.
        timed, stats: of the timed images, and of the quality sample.
        images, tokens, resampled: of the quality sample; tokens int64 [B, H, W] and bool [B, H, W] by part.
        nll, scores: of each image; `scenes` says that scores are of whole scenes.
        estimates, within: of sets of images, see `describe`.
    """

    decoder: Decoder
    engine: Engine | None = None
    label: str = ""
    folder: str = ""
    seconds: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    timed: list[GenerationStats] = field(default_factory=list)
    stats: list[GenerationStats] = field(default_factory=list)
    images: list[NDArray[np.uint8]] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    resampled: list[torch.Tensor] = field(default_factory=list)
    nll: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scores: list[Score] | None = None
    scenes: bool = False
    estimates: dict[str, Estimate] = field(default_factory=dict)
    within: NDArray[np.float64] | None = None

    def cost(self, job: Job, seconds: float, stats: list[GenerationStats]) -> None:
        """Take in what a job cost."""
        if job.timed:
            self.seconds.append(seconds)
            self.sizes.append(len(job.prompts))
            self.timed += stats
        if job.first:
            self.stats += stats

    def add(self, job: Job, drawn: Drawn) -> None:
        """Take in what a job cost and gave."""
        self.cost(job, drawn.seconds, drawn.stats)
        if job.first:
            # Arrays are smaller than images of Pillow.
            self.images += list(as_array(drawn.images))
            self.tokens.append(drawn.tokens)
            if drawn.resampled is not None:
                self.resampled.append(drawn.resampled)


def origin(engine: Engine, params: SamplingParams, seed: int) -> dict[str, Any]:
    """Where figures come from: device, versions, commit, family, sampling, seed, and 8-bit weights if there are any."""
    held = engine.family.quantization
    return {
        "device": device_name(torch.device(engine.family.device)),
        "versions": versions(),
        "commit": commit(),
        "family": engine.family.name,
        "sampling": params.to_dict(),
        "seed": seed,
        **({} if held is None else {"quantization": held}),
    }


def draw(
    engine: Engine,
    prompts: Sequence[str],
    jobs: Sequence[Job],
    samples: Sequence[Sample],
    params: SamplingParams,
    seed: int,
    journal: Journal,
    progress: Progress | None = None,
    *,
    batch_size: int | None = None,
    warm_up: bool = True,
    replay: bool = True,
    kept: Callable[[int, int], bool] = lambda number, turn: True,
) -> Iterator[Drawn]:
    """Draw what the journal does not hold yet, decoders taking turns at each job; give it, job by job.

    Args:
        engine: draws, where a sample has no engine of its own.
        prompts: prompt i has seed `seed` + i with every decoder.
        jobs: prompts by number.
        samples: one a decoder.
        params: sampling.
        seed: of the first prompt.
        journal: keeps what is drawn, by job and decoder.
        progress: called with (decoder, images done, in all).
        batch_size: images decoded together; None is all of a job.
        warm_up: let each decoder draw the first prompt before anything is timed.
        replay: keep tokens, so that what the journal has can be given again; without, that is left out.
        kept: whether what the journal has of a job and a decoder, both by number, still stands.
    """

    def call(sample: Sample, numbers: list[int]) -> Any:
        return (sample.engine or engine).generate(
            [prompts[i] for i in numbers],
            decoder=sample.decoder,
            sampling=params,
            seed=[seed + i for i in numbers],
            batch_size=batch_size or len(numbers),
        )

    known = {key for key in journal.records if kept(*key)}
    if warm_up and len(known) < len(jobs) * len(samples):
        for sample in samples:
            call(sample, [0])
    done, total = 0, len(samples) * sum(len(job.prompts) for job in jobs)
    for number, job in enumerate(jobs):
        for turn, sample in enumerate(samples):
            if (number, turn) in known:
                if replay:
                    yield replayed(engine, number, turn, job, journal.records[number, turn])
            else:
                begun = time.perf_counter()
                found = call(sample, job.prompts)
                seconds = time.perf_counter() - begun
                stats, tokens, resampled = found.stats, found.tokens, found.resampled
                record = {"seconds": seconds, "stats": [s.to_dict() for s in stats]}
                if replay:
                    record["tokens"] = tokens.tolist()
                if replay and resampled is not None:
                    # The places, for most tokens are not resampled.
                    record["resampled"] = [part.flatten().nonzero().flatten().tolist() for part in resampled]
                journal.add((number, turn), record)
                yield Drawn(number, turn, seconds, stats, tokens, list(found.images), resampled)
            done += len(job.prompts)
            if progress is not None:
                progress(sample.decoder.name, done, total)


def replayed(engine: Engine, number: int, turn: int, job: Job, record: dict[str, Any]) -> Drawn:
    """What a record of the journal tells."""
    tokens, resampled = torch.tensor(record["tokens"]), None
    if "resampled" in record:
        resampled = torch.zeros(tokens.shape, dtype=torch.bool)
        for part, places in zip(resampled, record["resampled"], strict=True):
            part.view(-1)[places] = True
    stats = [GenerationStats(**s) for s in record["stats"]]
    images = list(engine.to_images(tokens)) if job.first else []
    return Drawn(number, turn, record["seconds"], stats, tokens, images, resampled)


def costs(sample: Sample, group: int = 1) -> dict[str, Any]:
    """What the images of a decoder cost, as a row states it; forwards are of timed ones, for those of a batch share
    them."""
    total = by_prompt([sum(stats.forwards.values()) for stats in sample.timed], group)
    return {
        "seconds_per_image": {
            **spread(np.asarray(sample.seconds) / sample.sizes),
            "mean": sum(sample.seconds) / sum(sample.sizes),
            "ci95": list(bootstrap_ratio(sample.seconds, sample.sizes)),
            "runs": len(sample.seconds),
        },
        "stages": mean_by_key([s.seconds for s in sample.timed]),
        "forwards": mean_by_key([s.forwards for s in sample.timed]),
        "forwards_ci95": list(bootstrap_ratio(total, np.full(len(total), float(group)))),
        "fed": mean_by_key([s.fed for s in sample.timed]),
        **{key: mean_or_none([getattr(s, key) for s in sample.stats]) for key in ("rejection", "coverage", "accepted")},
    }


def describe(
    engine: Engine, prompts: Sequence[str], sample: Sample, judge: Judge, group: int = 1, sets: bool = False
) -> Row:
    """The row of a decoder: what its images cost and what they are worth; fills the sample's findings.

    Args:
        engine: whose target judges likelihoods.
        prompts: one an image.
        sample: with its images.
        judge: of accuracy and distances.
        group: neighbours that are images of one prompt, the unit of the intervals.
        sets: also measure what takes more time: Frechet distance, diversity, seams.
    """
    images = judge.see(np.stack(sample.images))
    sample.nll = likelihoods(engine, prompts, torch.cat(sample.tokens), [stats.seed for stats in sample.stats])
    sample.scores, sample.scenes = judge.scores(prompts, images), judge.scenes
    accuracy = None if sample.scores is None else summarise(sample.scores, group)
    values = {
        **costs(sample, group),
        "nll": float(sample.nll.mean()),
        "nll_ci95": over_prompts(sample.nll, np.ones(len(sample.nll)), group)["ci95"],
        "accuracy": accuracy,
        "scenes": accuracy["scene"] if accuracy is not None and sample.scenes else None,
    }
    if sets:
        sample.estimates = judge.distances(images, group)
        resampled = torch.cat(sample.resampled).numpy() if sample.resampled else None
        values |= judge.stated(sample.estimates, images)
        values |= {
            "diversity": diversity(sample, images.features, group),
            "seam": None if resampled is None else seam_energy(sample.images, resampled, group),
        }
    else:
        values["kid"] = judge.kid(images)
    own = stated(engine, sample.engine)
    spec = ":".join([spell(sample.decoder), *(f"{key}={value}" for key, value in own.items())])
    what = {"decoder": sample.decoder.name, "spec": spec}
    settings = {**sample.decoder.settings(), **own}
    return Row({**({"label": sample.label} if sample.label else {}), **what}, values, settings)


def diversity(sample: Sample, features: NDArray[np.float32] | None, group: int) -> dict[str, Any] | None:
    """Diversity overall and within prompts, None with too few images; fills the sample's estimates."""
    if features is None or len(features) < MIN_SET:
        return None
    sample.estimates["overall"] = overall_diversity(features, group=group)
    sample.within = prompt_diversities(features, group) if group > 1 else None
    return {
        "overall": sample.estimates["overall"].plain(),
        "within": None if sample.within is None else mean_over_prompts(sample.within),
    }


def difference(sample: Sample, base: Sample, group: int = 1) -> dict[str, Any]:
    """The figures of a sample minus those of another of the same prompts and seeds, with intervals over prompts.

    Args:
        sample, base: that `describe` was called with.
        group: neighbours that are images of one prompt, the unit of the intervals.

    Returns:
        {"value", "ci95"} of `accuracy` (None where nothing is asked for), `nll`, `scenes` where there are some, and of
        the estimates.
    """
    ones = np.ones(len(sample.nll))
    found: dict[str, Any] = {"accuracy": None, "nll": over_prompts(sample.nll - base.nll, ones, group)}
    if sample.scores is not None and base.scores is not None:
        pairs = list(zip(sample.scores, base.scores, strict=True))
        if any(a.asked for a, _ in pairs):
            right = [float(a.found - b.found) for a, b in pairs]
            found["accuracy"] = over_prompts(right, [float(a.asked) for a, _ in pairs], group)
        if sample.scenes:
            found["scenes"] = over_prompts([float(a.scene) - float(b.scene) for a, b in pairs], ones, group)
    for key, estimate in sample.estimates.items():
        found[key] = (estimate - base.estimates[key]).plain()
    if sample.within is not None and base.within is not None:
        found["within"] = mean_over_prompts(sample.within - base.within)
    return found


def likelihoods(
    engine: Engine, prompts: Sequence[str], tokens: torch.Tensor, seeds: Sequence[int]
) -> NDArray[np.float64]:
    """Negative log-likelihood of each image, nats a token, from tokens [B, H, W] and the seeds that drew them."""
    batches = [slice(start, start + NLL_BATCH) for start in range(0, len(prompts), NLL_BATCH)]
    parts = [engine.nll(prompts[batch], tokens[batch], seeds[batch]) for batch in batches]
    return torch.cat(parts).double().numpy()


def mean_by_key(dictionaries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each key, absent ones counting as zero."""
    keys = dict.fromkeys(key for d in dictionaries for key in d)
    return {key: float(np.mean([d.get(key, 0) for d in dictionaries])) for key in keys}


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def by_prompt(values: ArrayLike, group: int) -> NDArray[np.float64]:
    """Sums [prompts] of values [prompts * group], neighbours being images of one prompt."""
    return np.asarray(values, np.float64).reshape(-1, group).sum(axis=1)


def over_prompts(values: ArrayLike, weights: ArrayLike, group: int) -> dict[str, Any]:
    """{"value", "ci95"} of a sum of values over a sum of weights, prompts being the unit."""
    a, b = by_prompt(values, group), by_prompt(weights, group)
    return {"value": float(a.sum() / b.sum()), "ci95": list(bootstrap_ratio(a, b))}
