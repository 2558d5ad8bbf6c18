"""`mulosd bench upsamplers`: variants of the latent up-sampler beside those that need no training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic import write_json
from .bench_options import (
    BatchOption,
    JsonOption,
    PromptsFileOption,
    PromptsOption,
    RunsOption,
    TimingOption,
    check_options,
    choose_prompts,
    tell,
)
from .console import count_bar, examples, stdout
from .options import DeviceOption, FamilyOption, SeedOption

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = examples(
    "mulosd bench upsamplers --family families/photo --config configs/photo.yaml --run runs/photo --prompts 32 "
    "--json upsamplers.json",
    "mulosd bench upsamplers --family families/photo --config configs/photo.yaml --run runs/photo --variant token "
    "--variant patchgan --base mulo:scale=4:radius=1:pool=1:window=2",
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
    base: Annotated[str, typer.Option(help="MuLo-SD that each is measured in.")] = "mulo",
    rejection: Annotated[
        float, typer.Option(help="Share of tokens that tau is calibrated to reject, where --base states no tau.")
    ] = 0.01,
    pictures: Annotated[int, typer.Option(help="Held-out real pictures to encode, up-sample and judge.")] = 32,
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
    target would reject at one tau for all, of drafts and of real pictures, is printed below.
    """
    check_options(prompts, {"--json": json_file, "--runs": runs_file})
    if pictures < 0:
        raise ValueError(f"--pictures must be 0 or more, got {pictures}")
    if not run.is_dir():
        raise ValueError(f"--run {run}: there is no such folder; train into it first (mulosd train upsampler)")

    import numpy as np
    import torch

    from .. import Engine, MuloSD
    from ..engine.decoding.spec import parse
    from ..eval.ablations import CALIBRATION_PROMPTS, CALIBRATION_SEED
    from ..eval.references import REAL_SEED
    from ..eval.report import bench_table
    from ..eval.upsamplers import Candidate, bench_upsamplers, untrained, upsampler_rows
    from ..train.config import FamilyConfig
    from ..train.stages import trained_tokenizer
    from ..train.variants import trained_variants

    start = parse(base)
    if not isinstance(start, MuloSD):
        raise ValueError(f"--base {base!r}: up-samplers are of mulo; write mulo:key=value:…")
    training = FamilyConfig.load(config)
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
            engine,
            choose_prompts(engine, prompts, prompts_file, seed),
            candidates,
            start,
            rejection=rejection,
            calibration_prompts=choose_prompts(engine, CALIBRATION_PROMPTS, prompts_file, CALIBRATION_SEED),
            pictures=real,
            seed=seed,
            timing_images=timing_images,
            batch_for_quality=batch_size,
            runs=runs_file,
            progress=lambda what, done, total: bar(what, done, total),
        )
    report["notes"] += notes + left_out
    if json_file is not None:
        write_json(json_file, report)
    stdout.print(bench_table(report, upsampler_rows(report)))
    stdout.print(upsampler_table(report))
    stdout.print(f"base: {report['base']}", markup=False, soft_wrap=True)
    tell(report["notes"])


def upsampler_table(report: dict[str, Any]) -> Table:
    """What each up-sampler loses at one tau, and how near it comes to real pictures."""
    from rich import box
    from rich.table import Table

    most = report["reconstruction_psnr"]
    table = Table(
        title=f"{report['family']}: rejected at tau {report['judged_tau']:.3g}, %",
        caption=f"{report['prompts']} drafts and {report['pictures']} real pictures (95 % interval over pictures)"
        + ("" if most is None else f"; tokenizer alone {most:.1f} dB"),
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("up-sampler")
    for heading in ("steps", "own tau", "drafts", "real", "NLL", "dB", "equal %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in report["upsamplers"]:
        rows = {row["source"]: row for row in entry["acceptance"]}
        real, near = rows.get("real up-sampled"), entry["real"]
        if "real" in rows:
            table.add_row(
                "(encoded)", "", "", "", rejected(rows["real"]), f"{rows['real']['nll']['value']:.2f}", "", ""
            )
        table.add_row(
            entry["name"],
            "-" if entry["training"] is None else str(entry["training"]["steps"]),
            f"{entry['tau']:.2g}",
            rejected(rows["draft"]),
            "-" if real is None else rejected(real),
            "-" if real is None else f"{real['nll']['value']:.2f}",
            "-" if near is None else f"{near['psnr']:.1f}",
            "-" if near is None else f"{100 * near['match']:.1f}",
        )
    return table


def rejected(row: dict[str, Any]) -> str:
    high, low = (100 * (1 - end) for end in row["accepted"]["ci95"])
    return f"{100 * (1 - row['accepted']['value']):.1f} ({low:.1f}-{high:.1f})"
