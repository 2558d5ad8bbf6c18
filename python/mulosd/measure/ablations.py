"""What each part of MuLo-SD buys: one setting at a time is changed, the others stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..engine.calibrate import DraftMasses, calibrate, draft_masses, mean_steps, tau_of_steps
from ..engine.decoding.base import Decoder
from ..engine.decoding.draft_only import DraftOnly
from ..engine.decoding.mulo import MuloSD
from ..engine.decoding.serial import Serial
from ..engine.decoding.spec import spell
from .decode import measure

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.family import Family

REJECTION = 0.01
CALIBRATION_PROMPTS = 16
CALIBRATION_SEED = 2_000_003

# A variant is a name and the settings that it changes.
Variants = dict[str, dict[str, Any]]


def rejections(family: Family, base: MuloSD) -> Variants:
    return {
        "raster": {"rejection": "raster"},
        "naive local": {"rejection": "naive"},
        "local + expansion": {"rejection": "local"},
    }


def radii(family: Family, base: MuloSD) -> Variants:
    return {str(radius): {"radius": radius} for radius in range(5)}


def pools(family: Family, base: MuloSD) -> Variants:
    return {str(pool): {"pool": pool} for pool in (1, 10, 50) if pool <= family.ar.config.vocab_size}


def spreads(family: Family, base: MuloSD) -> Variants:
    names = {0.0: "fixed radius", 1.0: "radius + H", 2.0: "radius + 2H", -1.0: "radius - H"}
    return {name: {"entropy_radius": rate} for rate, name in names.items()}


def upsamplers(family: Family, base: MuloSD) -> Variants:
    own = () if family.srgan is None else ("srgan",)
    return {name: {"upsampler": name} for name in ("latent", "pixel", *own)}


def windows(family: Family, base: MuloSD) -> Variants:
    some = {f"parallel, window {w}": {"window": w} for w in (1, 2, 4, 8, 16) if w < family.grids[-1]}
    return {"serial": {"window": 0}, **some}


def draftings(family: Family, base: MuloSD) -> Variants:
    ways: dict[str, dict[str, Any]] = {"serial": {"draft_window": None, "draft_guesses": 0}}
    for guesses in (8, 16, 32):
        ways[f"Jacobi, {guesses} guesses"] = {"draft_window": None, "draft_guesses": guesses}
    for window in (2, 4):
        ways[f"ZipAR, window {window}"] = {"draft_window": window, "draft_guesses": None}
    return ways


def row_counts(family: Family, base: MuloSD) -> Variants:
    if base.settings()["cascade"]:
        return {}
    grid, rows = family.grids[-1], base.scale or 1
    latent = (base.upsampler or family.upsampler) == "latent"
    if latent and (grid, grid // rows) not in family.resamplers:
        return {}  # no latent down-sampler, which cycles go back by
    found: Variants = {}
    while rows < grid:
        found[f"{rows} rows"] = {"rows_per_cycle": rows}
        rows *= 2
    return {**found, "one shot": {"rows_per_cycle": None}}


def cascades(family: Family, base: MuloSD) -> Variants:
    if base.rows_per_cycle is not None or len(base.changed(cascade=True).grids(family)) < 3:
        return {}
    return {"direct": {"cascade": False}, "cascade": {"cascade": True}}


# Variants of these get the tau that takes as many forwards as the base's resampling, not its share of rejections.
MATCHED = ("matched",)
ABLATIONS: dict[str, Callable[[Family, MuloSD], Variants]] = {
    "rejection": rejections,
    "matched": rejections,
    "radius": radii,
    "pool": pools,
    "spread": spreads,
    "upsampler": upsamplers,
    "resampling": windows,
    "drafting": draftings,
    "rows": row_counts,
    "cascade": cascades,
}


def check_names(names: Sequence[str]) -> None:
    """ValueError for an ablation that there is not."""
    unknown = [name for name in names if name not in ABLATIONS]
    if unknown:
        raise ValueError(f"there is no ablation {', '.join(unknown)}; choose from {', '.join(ABLATIONS)}")


def plan_ablations(family: Family, base: MuloSD, only: Sequence[str] | None = None) -> dict[str, dict[str, MuloSD]]:
    """Decoders by ablation and variant; ablations that the family or the base rules out are left away.

    Raises:
        ValueError: an unknown ablation, or nothing is left.
    """
    check_names(only or [])
    found = {
        name: {variant: base.changed(**changes) for variant, changes in make(family, base).items()}
        for name, make in ABLATIONS.items()
        if not only or name in only
    }
    found = {name: variants for name, variants in found.items() if len(variants) > 1}
    if not found:
        raise ValueError(
            f"family {family.name!r} allows none of {', '.join(only or ABLATIONS)} with {spell(base)!r}: "
            f"a cascade needs three grids and no rows per cycle"
        )
    return found


def tau_that_rejects(engine: Engine, prompts: Sequence[str], decoder: MuloSD, rejection: float) -> float:
    """The `tau` at which a decoder rejects a share of the up-sampled tokens of prompts."""
    return calibrate(
        engine, prompts, rejection=rejection, scale=decoder.scale, pool=decoder.pool or 1, radius=decoder.radius or 0,
        upsampler=decoder.upsampler, seed=CALIBRATION_SEED,
    ).tau  # fmt: skip


def bench_ablations(
    engine: Engine,
    prompts: Sequence[str],
    base: MuloSD | None = None,
    only: Sequence[str] | None = None,
    *,
    rejection: float = REJECTION,
    calibration_prompts: Sequence[str] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Measure MuLo-SD with one setting changed at a time, beside serial decoding and the bare draft.

    Where the base states no `tau`, each pool and up-sampler gets the one that rejects the same share
    of tokens: at the same `tau` a larger pool would only reject less. The ablations of `MATCHED`
    compare at the same number of forwards instead, as planned on the calibration's drafts.

    Args:
        engine, prompts: see `measure`.
        base: what is changed; None is the family's calibrated setting.
        only: names out of `ABLATIONS`; None takes all.
        rejection: share of up-sampled tokens that `tau` is to reject.
        calibration_prompts: what it is calibrated on; None takes the prompts themselves.
        how: the other arguments of `measure`.

    Returns:
        The report of `measure`; a row has `ablations`, its variant by ablation, and the report the `base`.

    Raises:
        ValueError: as `measure`, `plan_ablations` and `calibrate`.
    """
    given = base or MuloSD()
    asked = prompts if calibration_prompts is None else calibration_prompts
    # Whatever the thresholds, the plan is the same: impossible requests fail before anything is calibrated.
    open_tau = given.tau is None
    start = (replace(given, tau=0.0) if open_tau else given).resolve(engine.family)
    plan = plan_ablations(engine.family, start, only)
    taus: dict[tuple[str | None, int], float] = {}

    def with_tau(decoder: MuloSD) -> MuloSD:
        if not open_tau:
            return decoder
        key = (decoder.upsampler, decoder.pool or 1)
        if key not in taus:
            taus[key] = tau_that_rejects(engine, asked, decoder, rejection)
        return replace(decoder, tau=taus[key])

    base_now = with_tau(start)
    drafts: list[DraftMasses] = []

    def at_same_speed(decoder: MuloSD) -> MuloSD:
        if not drafts:
            how_drafted = DraftOnly(start.scale, start.upsampler, start.draft_window, start.draft_guesses)
            drafts.append(
                draft_masses(
                    engine,
                    asked,
                    how_drafted.resolve(engine.family),
                    pool=start.pool or 1,
                    seed=CALIBRATION_SEED,
                )
            )
        if decoder.rejection == base_now.rejection:
            return base_now
        steps = mean_steps(drafts[0], base_now, base_now.tau or 0.0)
        return replace(decoder, tau=tau_of_steps(drafts[0], decoder, steps))

    rows: dict[Decoder, dict[str, str]] = {
        Serial().resolve(engine.family): {},
        DraftOnly(start.scale, start.upsampler, start.draft_window, start.draft_guesses).resolve(engine.family): {},
        base_now: {},
    }
    for name, variants in plan.items():
        settle = at_same_speed if name in MATCHED else with_tau
        for variant, decoder in variants.items():
            rows.setdefault(settle(decoder), {})[name] = variant
    report = measure(engine, prompts, list(rows), **how)
    for row, names in zip(report["rows"], rows.values(), strict=True):
        row["ablations"] = names
    return {**report, "base": spell(base_now), "wanted_rejection": rejection if open_tau else None}


def ablation_rows(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the report for a table: serial, the bare draft, then each ablation's variants by name."""
    rows = report["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["ablations"]))
    found = [(row["decoder"], row) for row in rows if not row["ablations"] and row["decoder"] != "mulo"]
    for name in names:
        found += [(f"{name}: {row['ablations'][name]}", row) for row in rows if name in row["ablations"]]
    return found
