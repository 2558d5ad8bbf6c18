"""Calibration by what images show: the setting of `mulo` with the fewest forwards that keeps what a judge sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.calibrate import DraftMasses, draft_masses, mean_steps, tau_of_share
from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.serial import Serial
from ..engine.family_config import Calibration
from .journal import Journal
from .judge import Judge
from .run import Job, Sample, describe, difference, draw

if TYPE_CHECKING:
    from ..engine.engine import Engine

# What a setting may be asked to keep, and whether more of it is better.
KEPT = {"scenes": True, "accuracy": True, "kid": False, "nll": False}
BATCH = 8


@dataclass(frozen=True)
class Choices:
    """Settings to choose from; the tau of each comes from the share of draft tokens that it rejects.

    Attributes:
        shares: of rejected tokens, each in (0, 1).
        pools, radii, windows: see `MuloSD`.
        drafts: (draft_window, draft_guesses).
    """

    shares: Sequence[float] = (0.0025, 0.005, 0.01, 0.02, 0.04)
    pools: Sequence[int] = (1, 10)
    radii: Sequence[int] = (0, 1)
    windows: Sequence[int] = (1, 2)
    drafts: Sequence[tuple[int | None, int | None]] = ((None, 16),)


@dataclass(frozen=True)
class Trial:
    """A setting that was tried.

    Attributes:
        decoder: resolved.
        rejection: share of draft tokens that its tau rejects.
        forwards: of the AR model an image: foreseen from drafts alone, then the mean of the images drawn.
        differences: its figures minus those of the reference, {"value", "ci95"} each; empty before it is drawn.
        kept: whether none of what was to be kept is worse beyond its error.
    """

    decoder: MuloSD
    rejection: float
    forwards: float
    differences: dict[str, Any] = field(default_factory=dict)
    kept: bool = False


def stands(name: str, difference: dict[str, Any]) -> bool:
    """Whether a difference to the reference is no loss beyond its 95 % interval."""
    low, high = difference["ci95"]
    return bool(high >= 0 if KEPT[name] else low <= 0)


def foreseen(engine: Engine, prompts: Sequence[str], base: MuloSD, choices: Choices, seed: int) -> list[Trial]:
    """Every choice with its tau and about the forwards that it would take, fewest first; nothing is repaired yet."""
    trials = []
    for (window, guesses), pool in product(choices.drafts, choices.pools):
        drafter = DraftOnly(base.scale, base.upsampler, window, guesses).resolve(engine.family)
        found: DraftMasses = draft_masses(engine, prompts, drafter, pool=pool, seed=seed)
        for share in choices.shares:
            tau, rejection = tau_of_share(found, share)
            for radius, lock in product(choices.radii, choices.windows):
                decoder = replace(
                    base, scale=drafter.scale, upsampler=drafter.upsampler, pool=pool, tau=tau, radius=radius,
                    window=lock, draft_window=window, draft_guesses=guesses,
                ).resolve(engine.family)  # fmt: skip
                trials.append(Trial(decoder, rejection, found.forwards + 2 + mean_steps(found, decoder, tau)))
    return sorted(trials, key=lambda trial: trial.forwards)


def choose(
    engine: Engine,
    prompts: Sequence[str],
    keep: Sequence[str] = ("scenes",),
    *,
    base: MuloSD | None = None,
    choices: Choices | None = None,
    reference: Decoder | None = None,
    most: int = 20,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Calibration, list[Trial]]:
    """The setting with the fewest forwards that keeps what a judge sees of the images of a reference.

    Settings are tried from the fastest on, and the first one is taken that is not worse than the reference beyond the
    95 % interval of the difference, prompt by prompt. With few prompts that interval is wide and much passes: take 64
    or more, and measure what was chosen on other prompts.

    Args:
        engine: a loaded engine, whose family has a grader, or a reference for KID.
        prompts: what the family is used for.
        keep: names of `KEPT`.
        base: the scale, up-sampler and other settings of every choice.
        choices: what to choose from.
        reference: what must be kept; None is `Serial`.
        most: trials that are drawn at most.
        seed: of the first prompt; the others count on.
        progress: called with (what, done, total).

    Returns:
        The setting, and what was tried, the last of it being the setting.

    Raises:
        ValueError: the family cannot be judged so, or nothing that was tried keeps it (the message says how near).
    """
    unknown = [name for name in keep if name not in KEPT]
    if unknown or not keep:
        raise ValueError(f"what is kept must be of {', '.join(KEPT)}, got {', '.join(unknown) or 'nothing'}")
    judge = Judge(engine, seed=seed)
    base, choices = base or MuloSD(), choices or Choices()
    tell = progress or (lambda what, done, total: None)
    best = sampled(engine, prompts, (reference or Serial()).resolve(engine.family), judge, seed, tell)
    lacking = [name for name in keep if figure_of(best, best, name) is None]
    if lacking:
        why = "; ".join(judge.notes)
        raise ValueError(f"family {engine.family.name!r} cannot be judged by {', '.join(lacking)}: {why}")
    tried: list[Trial] = []
    for trial in distinct(foreseen(engine, prompts, base, choices, seed))[:most]:
        sample = sampled(engine, prompts, trial.decoder, judge, seed, tell)
        found = {name: figure for name in keep if (figure := figure_of(sample, best, name)) is not None}
        forwards = float(np.mean([sum(s.forwards.values()) for s in sample.stats]))
        kept = all(stands(name, figure) for name, figure in found.items())
        tried.append(replace(trial, forwards=forwards, differences=found, kept=kept))
        if tried[-1].kept:
            return calibration_of(tried[-1], len(prompts)), tried
    nearest = "; ".join(f"{n} {d['value']:+.3g}" for n, d in tried[-1].differences.items())
    raise ValueError(
        f"none of the {len(tried)} fastest settings keeps {', '.join(keep)}; the last was off by {nearest}. Allow more "
        "trials or larger shares of rejected tokens, or train the drafter and the up-sampler further"
    )


def distinct(trials: Sequence[Trial]) -> list[Trial]:
    """Trials whose decoders differ: without rejections many are the same."""
    return list({trial.decoder: trial for trial in reversed(trials)}.values())[::-1]


def sampled(
    engine: Engine,
    prompts: Sequence[str],
    decoder: Decoder,
    judge: Judge,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> Sample:
    """What a decoder draws of the prompts, judged."""
    sample = Sample(decoder)
    jobs = [
        Job(list(range(start, min(start + BATCH, len(prompts)))), timed=True) for start in range(0, len(prompts), BATCH)
    ]
    params, journal = engine.family.sampling, Journal(None, {})
    for drawn in draw(engine, prompts, jobs, [sample], params, seed, journal, progress, warm_up=False):
        sample.add(jobs[drawn.number], drawn)
    describe(engine, prompts, sample, judge, sets=True)
    return sample


def figure_of(sample: Sample, base: Sample, name: str) -> dict[str, Any] | None:
    """The difference of two samples in one of `KEPT`; None where it was not measured."""
    found: dict[str, Any] | None = difference(sample, base).get(name)
    return found


def calibration_of(trial: Trial, prompts: int) -> Calibration:
    """A trial as a family stores it."""
    d = trial.decoder
    return Calibration(
        d.scale or 0, d.upsampler or "", d.pool or 1, d.radius or 0, d.tau or 0.0, trial.rejection, trial.rejection,
        prompts, d.window, d.draft_guesses, d.draft_window, d.closeness or None,
    )  # fmt: skip
