"""`mulosd calibrate`: the threshold that gives a wanted rejection rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .console import examples, stdout
from .options import DecoderOption, DeviceOption, DtypeOption, SeedOption, read_decoder

EXAMPLES = examples(
    "mulosd calibrate --family families/mine",
    "mulosd calibrate --family families/mine --rejection 0.01 --decoder mulo:scale=2:pool=16 --prompts 64",
    "mulosd calibrate --family families/mine --decoder mulo:scale=2:upsampler=pixel:draft_window=2 --default",
    "mulosd calibrate --family families/mine --decoder mulo:pool=1:radius=0:window=2:draft_guesses=16",
)

# What is stored with tau; where nothing is said, codes pooled and radius are these.
STORED = ("scale", "upsampler", "pool", "radius", "window", "draft_guesses", "draft_window")
POOL, RADIUS = 10, 1


def calibrate(
    family: Annotated[str, typer.Option(help="The family, by folder or name; its family.json is rewritten.")],
    decoder: DecoderOption = f"mulo:pool={POOL}:radius={RADIUS}",
    rejection: Annotated[float, typer.Option(help="Wanted share of rejected tokens, between 0 and 1.")] = 0.02,
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
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Find the tau at which a wanted share of draft tokens is rejected, and store it in the family.

    Settings that --decoder states are stored along with it: `mulo` takes them where they are left out.
    """
    if not 0 < rejection < 1:
        raise ValueError(f"--rejection is a share between 0 and 1, such as 0.02; got {rejection}")
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")

    from .. import Engine, MuloSD
    from ..engine.calibrate import calibrate as run
    from ..engine.family import store_calibration
    from ..measure.prompts import default_prompts, read_prompts
    from .features import read_features

    wanted = read_decoder(decoder)
    if not isinstance(wanted, MuloSD) or wanted != MuloSD(**{key: getattr(wanted, key) for key in STORED}):
        raise ValueError(
            f"--decoder {decoder}: calibration finds the tau of mulo and stores {', '.join(STORED)} with it; "
            "leave everything else out"
        )
    own = None if prompts_file is None else read_prompts(prompts_file)
    engine = Engine.from_pretrained(family, device=device, dtype=dtype and dtype.value)
    given = None
    if features is not None:
        given = read_features(features, engine.family, None if own is None else len(own))
        own = own or [str(i) for i in range(len(given))]
    found = run(
        engine,
        own or default_prompts(engine, prompts, seed),
        rejection=rejection,
        scale=wanted.scale,
        pool=POOL if wanted.pool is None else wanted.pool,
        radius=RADIUS if wanted.radius is None else wanted.radius,
        upsampler=wanted.upsampler,
        seed=seed,
        features=given,
    )
    found = replace(found, window=wanted.window, draft_guesses=wanted.draft_guesses, draft_window=wanted.draft_window)
    folder = engine.family.path
    if folder is None:
        raise ValueError(f"family {family} was not loaded from a folder, so there is nothing to store into")
    store_calibration(folder, found, default=default)
    stdout.print(
        f"scale {found.scale}, {found.upsampler} up-sampler: tau {found.tau:.3g} rejects {found.rejection:.2%} of "
        f"draft tokens; stored in {folder / 'family.json'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
