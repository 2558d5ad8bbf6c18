"""`mulosd bench acceptance`: what the target accepts, by where the tokens come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .bench_options import JsonOption, PromptsFileOption, check_options, choose_prompts, finish, read_mulo
from .console import count_bar, examples
from .files import check_images
from .options import DecoderOption, DeviceOption, DtypeOption, FamilyOption, SeedOption

EXAMPLES = examples(
    "mulosd bench acceptance --prompts 32",
    "mulosd bench acceptance --family families/aligned --decoder mulo:tau=4e-5:pool=1 --json after.json",
    "mulosd bench acceptance --family families/llamagen --images photos --decoder mulo:tau=1e-3:pool=10",
    "mulosd bench acceptance --family photo --config configs/photo.yaml --decoder mulo:upsampler=latent",
)


def acceptance(
    family: FamilyOption = "emoji",
    prompts: Annotated[int, typer.Option(help="Held-out prompts, or classes.")] = 32,
    prompts_file: PromptsFileOption = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of captioned images for the rows of real ones.", show_default="scenes, if any"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training file (YAML) whose held-out images are the real ones.", show_default=False),
    ] = None,
    decoder: DecoderOption = "mulo",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Share of tokens that the target accepts: its own samples, real images, up-sampled ones, drafts.

    Says whether the up-sampler or the drafter loses what is rejected, before and after `mulosd train align-upsampler`
    or `mulosd train distill`. State the same tau, pool and draft_window for both families: the new one has no
    calibration that they could come from.
    """
    check_options(prompts, {"--json": json_file})
    check_images(images, config)
    asked = read_mulo(decoder)

    import numpy as np

    from ..engine.engine import Engine
    from ..measure.acceptance import acceptance_table, measure_acceptance
    from ..measure.references import REAL_SEED
    from ..train.config import images_of

    engine = Engine.from_pretrained(family, device=device, dtype=dtype and dtype.value)
    # The radius decides nothing here, but a decoder without one asks for a calibration.
    judge = replace(asked, radius=0).resolve(engine.family)
    own = choose_prompts(engine, prompts, prompts_file, seed)
    source = images_of(engine.family, images, held_out=True, config=config)
    target = engine.family.image_sizes[-1]
    sizes = (target // (judge.scale or 1), target)
    rngs = [np.random.default_rng([REAL_SEED, seed, i]) for i in range(len(own))]
    real = [] if source is None else [source.captioned(rng, sizes) for rng in rngs]
    with count_bar() as bar:
        report = measure_acceptance(engine, own, judge, images=real, seed=seed, progress=bar)
    finish(report, json_file, acceptance_table(report))
