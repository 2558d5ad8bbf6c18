"""Up-samplers of one family side by side: trained variants of the latent one, and those that need no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.calibrate import calibrate
from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.serial import Serial
from ..engine.decoding.spec import spell
from ..engine.engine import Engine
from ..engine.family import Family
from ..engine.super_resolution import RATIOS, model_files
from ..engine.upsampling import check_upsampler, upsample
from .ablations import CALIBRATION_SEED, REJECTION
from .acceptance import Pictures, measure_acceptance
from .bench import measure

if TYPE_CHECKING:
    from ..engine.models.upsampler import LatentResampler


@dataclass(frozen=True)
class Candidate:
    """An up-sampler to measure.

    Args:
        name: what its rows are called.
        method: as the decoders take it: "latent", "pixel", "sr" or a file of super-resolution weights.
        resamplers: by (source, target) grid, in place of the family's own; only "latent" has some.
        training: how they were trained, plain values for the report; `steps` among them.
    """

    name: str
    method: str = "latent"
    resamplers: Mapping[tuple[int, int], LatentResampler] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_upsampler(self.method)
        if self.resamplers and self.method != "latent":
            raise ValueError(f"the up-sampler {self.method!r} has no latent resamplers; {self.name!r} brings some")


def untrained(scale: int) -> tuple[list[Candidate], list[str]]:
    """The up-samplers that need no training at a ratio, and notes on those that are left out."""
    found, notes = [Candidate("lanczos", "pixel")], []
    try:
        if scale not in RATIOS:
            raise ValueError(f"its network enlarges by {' or '.join(map(str, RATIOS))}, not by {scale}")
        model_files(scale)
        found.append(Candidate("sr", "sr"))
    except (ImportError, ValueError) as error:
        notes.append(f"sr is left out: {error}")
    return found, notes


def fitted(engine: Engine, resamplers: Mapping[tuple[int, int], LatentResampler]) -> Engine:
    """An engine with other latent resamplers, which shares everything else with the one that is given."""
    if not resamplers:
        return engine
    old = engine.family
    family = Family(
        old.metadata,
        cast("nn.Module", old.tokenizer),
        old.conditioner,
        old.models,
        {**old.resamplers, **resamplers},
        old.path,
        old.eagle,
        old.srgan,
    )
    return Engine(family, device=str(old.device), dtype=engine.dtype, config=engine.config)


def bench_upsamplers(
    engine: Engine,
    prompts: Sequence[str],
    candidates: Sequence[Candidate],
    base: MuloSD | None = None,
    *,
    rejection: float = REJECTION,
    calibration_prompts: Sequence[str] | None = None,
    pictures: Pictures = (),
    seed: int = 0,
    **how: Any,
) -> dict[str, Any]:
    """Measure each up-sampler in the bare draft and in MuLo-SD, beside serial decoding.

    Where the base states no `tau`, each up-sampler gets the one that rejects the same share of its drafts' tokens:
    MuLo-SD then does about the same work with each, and the likelihood tells them apart. What each would lose at one
    `tau`, that of the first, is measured besides.

    Args:
        engine, prompts: see `measure`.
        candidates: at least one, of different names.
        base: MuLo-SD without an up-sampler; None is the family's calibrated setting.
        rejection: share of up-sampled tokens that `tau` is to reject.
        calibration_prompts: what it is calibrated on; None takes the prompts themselves.
        pictures: real ones, see `measure_acceptance`.
        seed, how: the other arguments of `measure`.

    Returns:
        The report of `measure`. A row has its `upsampler`, the name of a candidate or None for serial. The report has
        the `base`; `judged_tau`; `upsamplers`, a list of {"name", "method", "training", "tau", "acceptance", "real"}:
        rows of `measure_acceptance` at `judged_tau`, and `fidelity`; and `reconstruction_psnr`.

    Raises:
        ValueError: as `measure` and `calibrate`; no candidates or two of one name; a base with an up-sampler or a
            cascade; resamplers that do not fit the family or lack the pair that the base needs.
    """
    names = [c.name for c in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"up-samplers to compare need different names, and at least one; got {names}")
    family = engine.family
    given = base or MuloSD()
    if given.upsampler is not None or given.cascade:
        raise ValueError(f"base {spell(given)!r}: up-samplers are what is compared; leave upsampler and cascade out")
    # One window and way of drafting for all: an up-sampler's own calibration would be another setting.
    start = replace(given, tau=0.0 if given.tau is None else given.tau).resolve(family)
    guesses = 0 if start.draft_guesses is None and start.draft_window is None else start.draft_guesses
    start = replace(start, window=start.window or 0, draft_guesses=guesses)
    pair = (family.drafter_grid(start.scale or 0), family.grids[-1])
    engines = {c.name: fitted(engine, checked(c, family, pair)) for c in candidates}

    taus: dict[str, float] = {}
    rows: list[tuple[str | None, Decoder]] = [(None, Serial().resolve(family))]
    for c in candidates:
        taus[c.name] = start.tau or 0.0
        if given.tau is None:
            taus[c.name] = calibrate(
                engines[c.name],
                prompts if calibration_prompts is None else calibration_prompts,
                rejection=rejection,
                scale=start.scale,
                pool=start.pool or 1,
                radius=start.radius or 0,
                upsampler=c.method,
                seed=CALIBRATION_SEED,
            ).tau
        rows.append((c.name, DraftOnly(start.scale, c.method, start.draft_window, start.draft_guesses)))
        rows.append((c.name, replace(start, upsampler=c.method, tau=taus[c.name])))
    steps = {c.name: c.training["steps"] for c in candidates if c.training is not None}
    called: dict[str | None, str] = {
        None: "serial",
        **{name: f"{name}, {steps[name]} steps" if name in steps else name for name in names},
    }
    by = [(called[name], engine if name is None else engines[name]) for name, _ in rows]
    report = measure(engine, prompts, [decoder for _, decoder in rows], seed=seed, engines=by, **how)
    for row, (name, _) in zip(report["rows"], rows, strict=True):
        row["upsampler"] = name

    judged_tau = taus[names[0]]
    found = []
    for c in candidates:
        judge = replace(start, upsampler=c.method, tau=judged_tau)
        sources = ("real up-sampled", "draft") if c is not candidates[0] else ("real", "real up-sampled", "draft")
        accepted = measure_acceptance(
            engines[c.name], prompts, judge, pictures=pictures, seed=seed, sources=sources, progress=how.get("progress")
        )
        found.append(
            {
                "name": c.name,
                "method": c.method,
                "training": None if c.training is None else dict(c.training),
                "tau": taus[c.name],
                "acceptance": accepted["rows"],
                "real": fidelity(engines[c.name], pictures, c.method) if pictures else None,
            }
        )
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in steps.items())
        report["notes"].append(f"variants were trained for different numbers of steps: {told}")
    return {
        **report,
        "base": spell(replace(start, upsampler=None, tau=given.tau)),
        "wanted_rejection": rejection if given.tau is None else None,
        "judged_tau": judged_tau,
        "pictures": len(pictures),
        "reconstruction_psnr": None if not pictures else psnr_of(engine, pictures),
        "upsamplers": found,
    }


def checked(candidate: Candidate, family: Family, pair: tuple[int, int]) -> Mapping[tuple[int, int], LatentResampler]:
    """The candidate's resamplers; ValueError where they do not fit the family or lack the pair."""
    if candidate.method == "latent" and not candidate.resamplers:
        family.resampler(*pair)
    if candidate.resamplers and pair not in candidate.resamplers:
        have = ", ".join(f"{a}->{b}" for a, b in candidate.resamplers)
        raise ValueError(
            f"the up-sampler {candidate.name!r} has no resampler {pair[0]}->{pair[1]} (it has: {have}); "
            f"choose another scale of the base"
        )
    width = family.tokenizer.config.code_dim
    if any(m.config.code_dim != width for m in candidate.resamplers.values()):
        raise ValueError(
            f"the up-sampler {candidate.name!r} is not of family {family.name!r}, whose codes have {width} dimensions"
        )
    return candidate.resamplers


def encoded(engine: Engine, pictures: Pictures, index: int) -> tuple[Tensor, Tensor]:
    """Real pictures of one size: float32 [B, 3, S, S] in -1..1, and their tokens int64 [B, h, w]."""
    stack = np.stack([sizes[index] for _, sizes in pictures])
    image = torch.from_numpy(stack).to(engine.family.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    # One at a time: memory does not grow with their number.
    return image, torch.cat([engine.family.tokenizer.encode(one) for one in image.split(1)])


def psnr(engine: Engine, tokens: Tensor, image: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of decoded tokens to images, the mean over pictures."""
    parts = [engine.family.tokenizer.decode(t).clamp(-1, 1) for t in tokens.split(1)]
    error = ((torch.cat(parts) - image) ** 2).flatten(1).mean(dim=1) / 4
    return float((-10 * error.clamp_min(1e-10).log10()).mean())


@torch.inference_mode()
def fidelity(engine: Engine, pictures: Pictures, method: str) -> dict[str, float]:
    """Small real pictures up-sampled, beside the large ones: {"psnr" in dB, "match": share of equal tokens}."""
    image, wanted = encoded(engine, pictures, 1)
    small = encoded(engine, pictures, 0)[1]
    tokens = torch.cat([upsample(engine.family, t, wanted.shape[-1], method) for t in small.split(1)])
    return {"psnr": psnr(engine, tokens, image), "match": float((tokens == wanted).float().mean())}


@torch.inference_mode()
def psnr_of(engine: Engine, pictures: Pictures) -> float:
    """PSNR in dB of large real pictures through the tokenizer, the most that an up-sampler can reach."""
    image, tokens = encoded(engine, pictures, 1)
    return psnr(engine, tokens, image)


def upsampler_rows(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the report for a table, by up-sampler and decoder."""
    rows = report["rows"]
    return [
        (row["decoder"] if row["upsampler"] is None else f"{row['upsampler']}: {row['decoder']}", row) for row in rows
    ]
