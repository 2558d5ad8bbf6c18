"""`mulosd calibrate`: the threshold that gives a wanted rejection rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .console import examples, stdout
from .options import DeviceOption, Dtype, DtypeOption, ScaleOption, SeedOption, Upsampler, upsampler_of

EXAMPLES = examples(
    "mulosd calibrate --family ./families/mine",
    "mulosd calibrate --family ./families/mine --rejection 0.01 --scale 2 --pool 16 --prompts 64",
    "mulosd calibrate --family ./families/mine --scale 2 --upsampler pixel --window 1 --draft-window 2 --default",
    "mulosd calibrate --family ./families/mine --pool 1 --radius 0 --window 2 --draft-guesses 16",
)


def calibrate(
    family: Annotated[str, typer.Option(help="The family, by folder or name; its family.json is rewritten.")],
    rejection: Annotated[float, typer.Option(help="Wanted share of rejected tokens, between 0 and 1.")] = 0.02,
    scale: ScaleOption = None,
    pool: Annotated[int, typer.Option(help="Codebook neighbours whose probability is pooled.")] = 10,
    radius: Annotated[int, typer.Option(help="Radius to store along with tau.")] = 1,
    window: Annotated[
        int | None, typer.Option(help="Window of resampling to store along with tau.", show_default="serial")
    ] = None,
    draft_guesses: Annotated[
        int | None, typer.Option(help="Jacobi guesses of drafting to store along with tau.", show_default="serial")
    ] = None,
    draft_window: Annotated[
        int | None, typer.Option(help="ZipAR window of drafting to store along with tau.", show_default="serial")
    ] = None,
    upsampler: Annotated[
        Upsampler | None, typer.Option(help="How drafts are enlarged.", show_default="the family's")
    ] = None,
    sr_weights: Annotated[
        Path | None,
        typer.Option(help="Enlarge with this super-resolution network (spandrel).", show_default=False),
    ] = None,
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
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
) -> None:
    """Find the tau at which a wanted share of draft tokens is rejected, and store it in the family.

    Every scale and every up-sampler has its own setting; `mulosd generate` uses it where nothing else is given.
    """
    if not 0 < rejection < 1:
        raise ValueError(f"--rejection is a share between 0 and 1, such as 0.02; got {rejection}")
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")
    if radius < 0:
        raise ValueError(f"--radius must be 0 or more tokens, got {radius}")
    for option, value in (("--window", window), ("--draft-guesses", draft_guesses), ("--draft-window", draft_window)):
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1 token, got {value}; leave it out for serial")
    if draft_guesses is not None and draft_window is not None:
        raise ValueError("--draft-guesses and --draft-window are two ways to draft: give one of them")

    from .. import Engine
    from ..engine.calibrate import calibrate as run
    from ..measure.prompts import default_prompts, read_prompts
    from .features import read_features

    own = None if prompts_file is None else read_prompts(prompts_file)
    engine = Engine.from_pretrained(family, device=device, dtype=dtype.value)
    given = None
    if features is not None:
        given = read_features(features, engine.family, None if own is None else len(own))
        own = own or [str(i) for i in range(len(given))]
    found = run(
        engine,
        own or default_prompts(engine, prompts, seed),
        rejection=rejection,
        scale=scale,
        pool=pool,
        radius=radius,
        upsampler=upsampler_of(upsampler, sr_weights),
        seed=seed,
        features=given,
    )
    found = replace(found, window=window, draft_guesses=draft_guesses, draft_window=draft_window)
    folder = engine.family.path
    if folder is None:
        raise ValueError(f"family {family} was not loaded from a folder, so there is nothing to store into")
    found.store(folder, default=default)
    stdout.print(
        f"scale {found.scale}, {found.upsampler} up-sampler: tau {found.tau:.3g} rejects {found.rejection:.2%} of "
        f"draft tokens; stored in {folder / 'family.json'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
