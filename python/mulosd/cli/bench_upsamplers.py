"""`mulosd bench upsamplers`: variants of the latent up-sampler beside those that need no training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .bench_options import (
    BatchOption,
    JsonOption,
    PromptsFileOption,
    PromptsOption,
    RunsOption,
    TimingOption,
    check_options,
    choose_prompts,
    finish,
    read_mulo,
)
from .console import count_bar, examples
from .options import DecoderOption, DeviceOption, FamilyOption, SeedOption

EXAMPLES = examples(
    "mulosd bench upsamplers --family families/photo --config configs/photo.yaml --run runs/photo --prompts 32 "
    "--json upsamplers.json",
    "mulosd bench upsamplers --family families/photo --config configs/photo.yaml --run runs/photo --variant token "
    "--variant patchgan --decoder mulo:scale=4:radius=1:pool=1:window=2",
)


def upsamplers(
    config: Annotated[Path, typer.Option(help="The training file (YAML) of the family, with its variants.")],
    run: Annotated[Path, typer.Option(help="The run that holds the trained variants.")],
    family: FamilyOption = "photo",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this variant; may be given several times.", show_default="those that the run has trained"
        ),
    ] = None,
    sr_weights: Annotated[
        list[Path] | None,
        typer.Option(
            help="Weights of a super-resolution network to measure (needs mulosd\\[spandrel]); may be given several "
            "times.",
            show_default=False,
        ),
    ] = None,
    decoder: DecoderOption = "mulo",
    rejection: Annotated[
        float, typer.Option(help="Share of tokens that tau is calibrated to reject, where --decoder states no tau.")
    ] = 0.01,
    pictures: Annotated[int, typer.Option(help="Held-out real images to encode, up-sample and judge.")] = 32,
    prompts: PromptsOption = 16,
    prompts_file: PromptsFileOption = None,
    timing_images: TimingOption = None,
    batch_size: BatchOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
    runs_file: RunsOption = None,
) -> None:
    """What the losses of the up-sampler buy: trained variants, Lanczos and super-resolution, drafted bare and verified.

    Each has a row for the bare draft and one for mulo, whose tau rejects the same share of tokens with each. What the
    target would reject at one tau for all, of drafts and of real images, is printed below.
    """
    check_options(prompts, {"--json": json_file, "--runs": runs_file})
    if pictures < 0:
        raise ValueError(f"--pictures must be 0 or more, got {pictures}")
    if not run.is_dir():
        raise ValueError(f"--run {run}: there is no such folder; train into it first (mulosd train upsampler)")

    import numpy as np
    import torch

    from .. import Engine
    from ..measure.ablations import CALIBRATION_PROMPTS, CALIBRATION_SEED
    from ..measure.decode import bench_table
    from ..measure.references import REAL_SEED
    from ..measure.upsamplers import Candidate, bench_upsamplers, untrained, upsampler_rows, upsampler_table
    from ..train.config import TrainingFile
    from ..train.tokenizer import trained_tokenizer
    from ..train.upsampler import trained_variants

    start = read_mulo(decoder)
    training = TrainingFile.load(config)
    engine = Engine.from_pretrained(family, device=device)
    scale = start.scale or max(engine.family.scales, default=0)
    found, notes = trained_variants(training, run, variant or ())
    codebook = trained_tokenizer(training, run).codebook
    if not torch.equal(codebook, engine.family.tokenizer.codebook.cpu()):
        raise ValueError(
            f"family {engine.family.name!r} and --run {run} have different tokenizers: export the family from this run "
            f"(mulosd train export)"
        )
    pair = (engine.family.drafter_grid(scale), engine.family.grids[-1])
    for name in [name for name, (resamplers, _) in found.items() if not variant and pair not in resamplers]:
        del found[name]
        notes.append(f"variant {name} is left out: it is not for scale {scale}")
    candidates = [Candidate("latent")] if engine.family.resamplers else []
    candidates += [Candidate(f"latent/{name}", "latent", *about) for name, about in found.items()]
    free, left_out = untrained(scale)
    candidates += [Candidate("srgan", "srgan")] if engine.family.srgan else []
    candidates += [*free, *(Candidate(file.name, str(file)) for file in sr_weights or [])]
    sizes = (engine.family.image_sizes[-1] // scale, engine.family.image_sizes[-1])
    source = training.source(held_out=True)
    real = [source.captioned(np.random.default_rng([REAL_SEED, seed, i]), sizes) for i in range(pictures)]
    with count_bar() as bar:
        report = bench_upsamplers(
            engine, choose_prompts(engine, prompts, prompts_file, seed), candidates, start, rejection=rejection,
            calibration_prompts=choose_prompts(engine, CALIBRATION_PROMPTS, prompts_file, CALIBRATION_SEED),
            images=real, seed=seed, timing_images=timing_images, batch_for_quality=batch_size, runs=runs_file,
            progress=bar,
        )  # fmt: skip
    report["notes"] += notes + left_out
    tables = bench_table(report, upsampler_rows(report)), upsampler_table(report)
    finish(report, json_file, *tables, base=report["base"])
