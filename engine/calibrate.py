"""Calibration: the tau that rejects a wanted share of up-sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .decoding import DraftOnly
from .engine import Engine
from .family import update_metadata
from .sampling import Logits, SamplingParams, verify


@dataclass(frozen=True)
class Calibration:
    """A calibrated setting. `rejection` is the share that tau rejects on the calibration drafts, `wanted` the goal."""

    scale: int
    upsampler: str
    pool: int
    radius: int
    tau: float
    rejection: float
    wanted: float
    prompts: int

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
    upsampler: str = "latent",
    sampling: SamplingParams | None = None,
    seed: int = 0,
    batch_size: int = 8,
) -> Calibration:
    """Find the tau whose rejection rate on up-sampled drafts is `rejection`: that quantile of their pooled masses.

    Args:
        engine: a loaded engine.
        prompts: what the family is used for; their number sets the precision.
        rejection: wanted share of rejected tokens, in (0, 1).
        scale, pool, radius, upsampler: the setting to calibrate.
        sampling: None takes the family's defaults.

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
    result = engine.generate(prompts, decoder=decoder, sampling=params, seed=seed, batch_size=batch_size)
    table = family.neighbours(pool)
    masses = []
    for at in range(0, len(prompts), batch_size):
        part = list(prompts[at : at + batch_size])
        tokens = result.tokens[at : at + batch_size].flatten(1).to(family.device)
        cond = family.ar(family.features(part), tokens, family.grids[-1]).flatten(0, 1)
        uncond = None
        if params.guided:
            uncond = family.ar(family.null_features(len(part)), tokens, family.grids[-1]).flatten(0, 1)
        masses.append(verify(Logits(cond, uncond), tokens.flatten(), table, 0.0, params).mass)
    mass = torch.cat(masses).sort().values
    # Everything below tau is rejected. Half-way between two masses, rounding decides nothing.
    cut = min(len(mass) - 1, max(1, round(rejection * len(mass))))
    tau = float((mass[cut - 1] + mass[cut]) / 2)
    return Calibration(
        decoder.scale or 0,
        upsampler,
        pool,
        radius,
        tau,
        float((mass < tau).float().mean()),
        rejection,
        len(prompts),
    )
