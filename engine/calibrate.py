"""Calibration: the tau that rejects a wanted share of up-sampled tokens, or takes a wanted number of forwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .conditioning import Condition
from .decoding import DraftOnly
from .decoding.adaptive import entropy
from .decoding.mulo import MuloSD
from .decoding.rejection import verify
from .engine import Engine
from .family_config import Calibration
from .likelihood import teacher_forced
from .sampling import SamplingParams


class DraftMasses(NamedTuple):
    """What the target gives the up-sampled drafts of some prompts: pooled masses, what `tau` is compared with, and
    entropies in nats, each float32 [P, H, W]; and the mean of the forwards that a draft took."""

    masses: Tensor
    entropies: Tensor
    forwards: float = 0.0


@torch.inference_mode()
def draft_masses(
    engine: Engine,
    prompts: Sequence[str],
    decoder: DraftOnly,
    *,
    pool: int = 1,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    batch_size: int = 8,
    features: Condition | None = None,
) -> DraftMasses:
    """Draft, up-sample and verify: the masses of every token.

    Args:
        engine: a loaded engine.
        prompts: what the family is used for.
        decoder: how drafts are made.
        pool: see `MuloSD`.
        sampling: None takes the family's defaults.
        seed: of the first prompt; the others count on.
        features: conditions of the prompts, where they are not to be computed (see `Conditioner.precomputed`).

    Raises:
        ValueError: no prompts, or a setting that the family lacks.
    """
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    family = engine.family
    params = family.sampling if sampling is None else sampling
    result = engine.generate(
        prompts, decoder=decoder, sampling=params, seed=seed, batch_size=batch_size, features=features
    )
    table, grid = family.neighbours(pool), family.grids[-1]
    masses, entropies = [], []
    for i, prompt in enumerate(prompts):
        # One at a time: the logits of a large grid and vocabulary are hundreds of megabytes.
        tokens = result.tokens[i : i + 1].flatten(1).to(family.device)
        condition = family.condition([prompt], [result.seeds[i]]) if features is None else features[i : i + 1]
        logits = teacher_forced(family, condition, tokens, grid, params)
        masses.append(verify(logits, tokens.flatten(), table, 0.0, params).mass.view(grid, grid))
        entropies.append(entropy(logits, params).view(grid, grid))
    forwards = sum(sum(stats.forwards.values()) for stats in result.stats) / len(prompts)
    return DraftMasses(torch.stack(masses), torch.stack(entropies), forwards)


def tau_of_share(found: DraftMasses, share: float) -> tuple[float, float]:
    """The tau that rejects a share of the drafts' tokens, and the share that it rejects indeed."""
    mass = found.masses.flatten().sort().values
    # Everything below tau is rejected. Half-way between two masses, rounding decides nothing.
    cut = min(len(mass) - 1, max(1, round(share * len(mass))))
    tau = float((mass[cut - 1] + mass[cut]) / 2)
    return tau, float((mass < tau).float().mean())


def calibrate(
    engine: Engine,
    prompts: Sequence[str],
    *,
    rejection: float = 0.02,
    scale: int | None = None,
    pool: int = 10,
    radius: int = 1,
    upsampler: str | None = None,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    batch_size: int = 8,
    features: Condition | None = None,
) -> Calibration:
    """Find the tau whose rejection rate on up-sampled drafts is `rejection`: that quantile of their pooled masses.

    Args:
        engine: a loaded engine.
        prompts: what the family is used for; their number sets the precision.
        rejection: wanted share of rejected tokens, in (0, 1).
        scale, pool, radius, upsampler: the setting to calibrate; None is the family's own scale and up-sampler.
        sampling, seed, batch_size, features: as `draft_masses`.

    Raises:
        ValueError: no prompts, or a share outside (0, 1), or a setting that the family lacks.
    """
    if not 0 < rejection < 1:
        raise ValueError(f"rejection must be a share between 0 and 1, got {rejection}")
    decoder = DraftOnly(scale, upsampler).resolve(engine.family)
    found = draft_masses(
        engine, prompts, decoder, pool=pool, sampling=sampling, seed=seed, batch_size=batch_size, features=features,
    )  # fmt: skip
    tau, rejected = tau_of_share(found, rejection)
    return Calibration(
        decoder.scale or 0,
        decoder.upsampler or engine.family.upsampler,
        pool,
        radius,
        tau,
        rejected,
        rejection,
        len(prompts),
    )


def mean_steps(found: DraftMasses, decoder: MuloSD, tau: float) -> float:
    """Forwards a picture that `decoder` with this `tau` would resample in, the mean over the drafts."""
    maps = zip(found.masses, found.entropies, strict=True)
    plans = [decoder.repairs(mass < tau, [nats] * len(decoder.strategies)) for mass, nats in maps]
    return sum(len(plan.steps) for plan in plans) / len(plans)


def tau_of_steps(found: DraftMasses, decoder: MuloSD, steps: float) -> float:
    """The tau with which `decoder` resamples in about so many forwards a picture.

    Args:
        found: with the pool and up-sampler of the decoder.
        decoder: resolved; its own tau does not matter.
        steps: forwards a picture, 0 or more.
    """
    mass = found.masses.flatten().sort().values
    # More rejections take more forwards: bisect the number of rejected tokens.
    low, high = 0, len(mass)

    def tau(rejected: int) -> float:
        if rejected == 0:
            return 0.0
        if rejected == len(mass):
            return 2 * float(mass[-1])
        return float((mass[rejected - 1] + mass[rejected]) / 2)

    while high - low > 1:
        middle = (low + high) // 2
        if mean_steps(found, decoder, tau(middle)) < steps:
            low = middle
        else:
            high = middle
    return min((tau(low), tau(high)), key=lambda t: abs(mean_steps(found, decoder, t) - steps))
