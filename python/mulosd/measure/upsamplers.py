"""Up-samplers of one family side by side: trained variants of the latent one, and those that need no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.serial import Serial
from ..engine.decoding.spec import spell
from ..engine.engine import Engine
from ..engine.family import Family
from ..engine.super_resolution import RATIOS, model_files
from ..engine.upsampling import check_upsampler, upsample
from .ablations import REJECTION, tau_that_rejects
from .acceptance import Images, measure_acceptance, rejected
from .decode import measure
from .images import as_array, encode, psnr, reconstruct
from .rows import Row
from .table import figure, named, table

if TYPE_CHECKING:
    from rich.table import Table

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
        old.config,
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
    images: Images = (),
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
        images: real ones, see `measure_acceptance`.
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
    if given.upsampler is not None or given.settings()["cascade"]:
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
            asked = prompts if calibration_prompts is None else calibration_prompts
            taus[c.name] = tau_that_rejects(engines[c.name], asked, replace(start, upsampler=c.method), rejection)
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
            engines[c.name], prompts, judge, images=images, seed=seed, sources=sources, progress=how.get("progress")
        )
        found.append(
            {
                "name": c.name,
                "method": c.method,
                "training": None if c.training is None else dict(c.training),
                "tau": taus[c.name],
                "acceptance": accepted["rows"],
                "real": fidelity(engines[c.name], images, c.method) if images else None,
            }
        )
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in steps.items())
        report["notes"].append(f"variants were trained for different numbers of steps: {told}")
    large = np.stack([sizes[1] for _, sizes in images]) if images else np.zeros(0, np.uint8)
    return {
        **report,
        "base": spell(replace(start, upsampler=None, tau=given.tau)),
        "wanted_rejection": rejection if given.tau is None else None,
        "judged_tau": judged_tau,
        "pictures": len(images),
        "reconstruction_psnr": None if not images else psnr(reconstruct(engine, large), large),
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


def fidelity(engine: Engine, images: Images, method: str) -> dict[str, float]:
    """Small real images up-sampled, beside the large ones: {"psnr" in dB, "match": share of equal tokens}."""
    small, large = (np.stack([sizes[i] for _, sizes in images]) for i in (0, 1))
    wanted = encode(engine.family, large, 1)
    with torch.inference_mode():
        parts = encode(engine.family, small, 1).split(1)
        tokens = torch.cat([upsample(engine.family, part, wanted.shape[-1], method) for part in parts])
    made = as_array(engine.to_images(tokens))
    return {"psnr": psnr(made, large), "match": float((tokens == wanted).float().mean())}


def upsampler_rows(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the report for a table, by up-sampler and decoder."""
    rows = report["rows"]
    return [
        (row["decoder"] if row["upsampler"] is None else f"{row['upsampler']}: {row['decoder']}", row) for row in rows
    ]


def upsampler_table(report: Mapping[str, Any]) -> Table:
    """What each up-sampler loses at one tau, and how near it comes to real images."""
    rows, names = [], []
    for entry in report["upsamplers"]:
        found = {row["source"]: row for row in entry["acceptance"]}
        if "real" in found:
            names.append("(encoded)")
            rows.append(Row({}, {"real": found["real"]}))
        steps = None if entry["training"] is None else entry["training"]["steps"]
        values = {"steps": steps, "tau": entry["tau"], "draft": found["draft"], "near": entry["real"]}
        names.append(entry["name"])
        rows.append(Row({}, {**values, "real": found.get("real up-sampled")}))
    most = report["reconstruction_psnr"]
    return table(
        rows,
        [
            named(names, rows, "up-sampler"),
            figure("steps", "steps", "{value:.0f}"),
            figure("own tau", "tau", "{value:.2g}"),
            rejected("drafts", "draft.accepted", 1),
            rejected("real", "real.accepted", 1),
            figure("NLL", "real.nll", "{value:.2f}"),
            figure("dB", "near.psnr", "{value:.1f}"),
            figure("equal %", "near.match", "{value:.1f}", 100),
        ],
        f"{report['family']}: rejected at tau {report['judged_tau']:.3g}, %",
        f"{report['prompts']} drafts and {report['pictures']} real images (95 % interval over images)"
        + ("" if most is None else f"; tokenizer alone {most:.1f} dB"),
    )
