"""Calibration: the tau that rejects a wanted share of up-sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .conditioning import Condition
from .decoding import DraftOnly
from .decoding.adaptive import entropy
from .engine import Engine
from .family import update_metadata
from .likelihood import teacher_forced
from .sampling import SamplingParams, verify


@dataclass(frozen=True)
class Calibration:
    """A calibrated setting. `rejection` is the share that tau rejects on the calibration drafts, `wanted` the goal.

    `window` and `draft_guesses` are stored with it for `MuloSD` and `DraftOnly`; None leaves them serial.
    """

    scale: int
    upsampler: str
    pool: int
    radius: int
    tau: float
    rejection: float
    wanted: float
    prompts: int
    window: int | None = None
    draft_guesses: int | None = None

    def store(self, folder: Path) -> None:
        """Write the setting to a family's family.json, for its scale and up-sampler."""
        import json

        known = json.loads((folder / "family.json").read_text()).get("calibration", {})
        known[f"{self.scale}-{self.upsampler}"] = asdict(self)
        update_metadata(folder, calibration=known)


@torch.inference_mode()
def calibrate(
    engine: Engine,
    prompts: Sequence[str],
    *,
    rejection: float = 0.02,
    scale: int | None = None,
    pool: int = 10,
    radius: int = 1,
    upsampler: str | None = None,
    entropy_tau: float = 0.0,
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
        scale, pool, radius, upsampler, entropy_tau: the setting to calibrate; None is the family's largest scale, its
            own up-sampler. With `entropy_tau` a tau may be above 1.
        sampling: None takes the family's defaults.
        features: conditions of the prompts, where they are not to be computed (see `Conditioner.precomputed`).

    Raises:
        ValueError: no prompts, or a share outside (0, 1), or a setting that the family lacks.
    """
    if not 0 < rejection < 1:
        raise ValueError(f"rejection must be a share between 0 and 1, got {rejection}")
    if not prompts:
        raise ValueError("calibration needs at least one prompt")
    family = engine.family
    params = family.sampling if sampling is None else sampling
    decoder = DraftOnly(scale, upsampler).resolve(family)
    result = engine.generate(
        prompts, decoder=decoder, sampling=params, seed=seed, batch_size=batch_size, features=features
    )
    table = family.neighbours(pool)
    masses = []
    for i, prompt in enumerate(prompts):
        # One at a time: the logits of a large grid and vocabulary are hundreds of megabytes.
        tokens = result.tokens[i : i + 1].flatten(1).to(family.device)
        condition = family.condition([prompt]) if features is None else features[i : i + 1]
        logits = teacher_forced(family, condition, tokens, family.grids[-1], params)
        mass = verify(logits, tokens.flatten(), table, 0.0, params).mass
        masses.append(mass * torch.exp(entropy_tau * entropy(logits, params)) if entropy_tau else mass)
    mass = torch.cat(masses).sort().values
    # Everything below tau is rejected. Half-way between two masses, rounding decides nothing.
    cut = min(len(mass) - 1, max(1, round(rejection * len(mass))))
    tau = float((mass[cut - 1] + mass[cut]) / 2)
    return Calibration(
        decoder.scale or 0,
        decoder.upsampler or family.upsampler,
        pool,
        radius,
        tau,
        float((mass < tau).float().mean()),
        rejection,
        len(prompts),
    )
