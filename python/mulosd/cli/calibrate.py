"""`mulosd calibrate`: the threshold that gives a wanted rejection rate, or the fastest setting that keeps quality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import count_bar, examples, stdout
from .options import (
    DecoderOption,
    DeviceOption,
    DtypeOption,
    Quantization,
    QuantizationOption,
    SeedOption,
    read_decoder,
)

if TYPE_CHECKING:
    import mulosd
    from mulosd.engine.family_config import Calibration

EXAMPLES = examples(
    "mulosd calibrate --family families/mine",
    "mulosd calibrate --family families/mine --rejection 0.01 --decoder mulo:scale=2:pool=16 --prompts 64",
    "mulosd calibrate --family families/mine --decoder mulo:scale=2:upsampler=pixel:draft_window=2 --default",
    "mulosd calibrate --family families/mine --decoder mulo:pool=1:radius=0:window=2:draft_guesses=16",
    "mulosd calibrate --family families/mine --keep scenes --keep kid --prompts 64 --default",
)

# What is stored with tau; where nothing is said, codes pooled and radius are these.
STORED = ("scale", "upsampler", "pool", "radius", "window", "draft_guesses", "draft_window", "closeness")
POOL, RADIUS = 10, 1


def calibrate(
    family: Annotated[str, typer.Option(help="The family, by folder or name; its family.json is rewritten.")],
    decoder: DecoderOption = "mulo",
    rejection: Annotated[
        float, typer.Option(help="Wanted share of rejected tokens, between 0 and 1; with --keep, one to try.")
    ] = 0.02,
    prompts: Annotated[int, typer.Option(help="How many held-out prompts of the family to draft.")] = 32,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Take prompts from this file instead, one a line.", show_default=False)
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Precomputed conditions (.npy) to draft instead of prompts.", show_default=False),
    ] = None,
    default: Annotated[
        bool,
        typer.Option("--default", help="Make this scale and up-sampler what is used where none is asked for."),
    ] = False,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="scenes|accuracy|kid|nll",
            help="Choose pool, radius and window too: the fewest forwards at which this is not worse than with Serial, "
            "beyond its error; may be repeated.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="With --keep, most settings to draw.")] = 20,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    device: DeviceOption = "cpu",
) -> None:
    """Find the tau at which a wanted share of draft tokens is rejected, and store it in the family.

    With --keep, draw with Serial and with settings from the fastest on, and store the first that keeps its quality.
    Settings that --decoder states are stored along with it: `mulo` takes them where they are left out.
    """
    if not 0 < rejection < 1:
        raise ValueError(f"--rejection is a share between 0 and 1, such as 0.02; got {rejection}")
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")

    from .. import Engine, MuloSD
    from ..engine.calibrate import calibrate as run
    from ..engine.family import store_calibration
    from ..engine.lock import locked
    from ..measure.prompts import default_prompts, read_prompts
    from .features import read_features

    wanted = read_decoder(decoder)
    if not isinstance(wanted, MuloSD) or wanted != MuloSD(**{key: getattr(wanted, key) for key in STORED}):
        raise ValueError(
            f"--decoder {decoder}: calibration finds the tau of mulo and stores {', '.join(STORED)} with it; "
            "leave everything else out"
        )
    if keep and features is not None:
        raise ValueError("--keep judges images by their prompts: leave --features out")
    if trials < 1:
        raise ValueError(f"--trials must be at least 1, got {trials}")
    own = None if prompts_file is None else read_prompts(prompts_file)
    check_stores(family)
    engine = Engine.from_pretrained(family, device=device, dtype=dtype and dtype.value, quantization=quantization.value)
    folder = engine.family.path
    if folder is None:
        raise ValueError(f"family {family} was not loaded from a folder, so there is nothing to store into")
    given = None
    if features is not None:
        given = read_features(features, engine.family, None if own is None else len(own))
        own = own or [str(i) for i in range(len(given))]
    # Of one family at a time: the settings of another that ends meanwhile may be what this one draws with.
    with locked(folder, "a calibration of", name="calibrate"):
        asked = own or default_prompts(engine, prompts, seed)
        if keep:
            store_calibration(folder, chosen(engine, asked, keep, wanted, rejection, trials, seed), default=default)
            return
        found = run(
            engine,
            asked,
            rejection=rejection,
            scale=wanted.scale,
            pool=POOL if wanted.pool is None else wanted.pool,
            radius=RADIUS if wanted.radius is None else wanted.radius,
            upsampler=wanted.upsampler,
            seed=seed,
            features=given,
        )
        stored = ("window", "draft_guesses", "draft_window", "closeness")
        found = replace(found, **{name: getattr(wanted, name) for name in stored})
        store_calibration(folder, found, default=default)
    stdout.print(
        f"scale {found.scale}, {found.upsampler} up-sampler: tau {found.tau:.3g} rejects {found.rejection:.2%} of "
        f"draft tokens; stored in {folder / 'family.json'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def check_stores(family: str) -> None:
    """ValueError for a repository of the hub, which holds no calibrations, before its weights are read."""
    from ..engine.family_config import FILE
    from ..engine.hub import load_family

    folder = load_family(family, weights=False).path
    if folder is not None and not (folder / FILE).is_file():
        raise ValueError(
            f"{family} is a repository of the hub, and calibrations are stored in a {FILE}, which it has none of: try "
            f"settings by `mulosd bench decode --decoder mulo:tau=0.01:radius=1:pool=100 --prompts-file FILE` and name "
            f"them where you draw"
        )


def chosen(
    engine: mulosd.Engine,
    prompts: list[str],
    keep: list[str],
    wanted: mulosd.MuloSD,
    rejection: float,
    trials: int,
    seed: int,
) -> Calibration:
    """The fastest setting that keeps what is asked, told trial by trial."""
    from ..engine.decoding.spec import spell
    from ..measure.choose import Choices, choose

    given: dict[str, Any] = {
        name: [value]
        for name, value in (("pools", wanted.pool), ("radii", wanted.radius), ("windows", wanted.window))
        if value is not None
    }
    if wanted.draft_window is not None or wanted.draft_guesses is not None:
        given["drafts"] = [(wanted.draft_window, wanted.draft_guesses)]
    given["shares"] = sorted({*Choices().shares, rejection})
    base = replace(wanted, pool=None, radius=None, window=None, draft_window=None, draft_guesses=None)
    with count_bar() as progress:
        found, tried = choose(
            engine, prompts, keep, base=base, choices=Choices(**given), most=trials, seed=seed, progress=progress
        )
    for trial in tried:
        figures = ", ".join(f"{n} {d['value']:+.3g}" for n, d in trial.differences.items())
        verdict = "kept, and stored" if trial.kept else "not kept"
        stdout.print(
            f"{spell(trial.decoder)}: {trial.forwards:.0f} forwards, {figures} against Serial: {verdict}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
    return found
