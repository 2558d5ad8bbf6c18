"""`mulosd bench`: figures with their JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..atomic import write_json
from .console import count_bar, examples, stdout
from .files import check_file
from .options import DeviceOption, FamilyOption, ScaleOption, SeedOption

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure speed and quality.")

EXAMPLES = examples(
    "mulosd bench decode --prompts 8 --decoders serial,mulo",
    "mulosd bench decode --family emoji --prompts 64 --decoders serial,draft-only,mulo --json bench.json",
    "mulosd bench decode --prompts-file mine.txt --taus 0.001,0.01,0.05 --scale 2",
)


@app.callback()
def bench() -> None:
    """Measure speed and quality."""


@app.command("decode", epilog=EXAMPLES)
def decode(
    family: FamilyOption = "emoji",
    prompts: Annotated[int, typer.Option(help="How many held-out prompts of the family to draw.")] = 16,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Take prompts from this file instead, one a line.", show_default=False)
    ] = None,
    decoders: Annotated[
        str,
        typer.Option(help="Comma-separated: serial, draft-only, mulo, zipar; with settings: mulo:window=2:tau=0.01."),
    ] = "serial,draft-only,mulo",
    taus: Annotated[
        str | None, typer.Option(help="Comma-separated thresholds for mulo.", show_default="around the calibrated one")
    ] = None,
    scale: ScaleOption = None,
    timing_images: Annotated[
        int | None, typer.Option(help="Time only the first so many prompts.", show_default="all")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures decoded together where nothing is timed.")] = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.", show_default=False)
    ] = None,
) -> None:
    """Compare decoders on the same prompts: seconds, forwards, rejection, likelihood, object accuracy, KID-Lite0."""
    names = parse_decoders(decoders)
    thresholds = None if taus is None else parse_taus(taus)
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")
    if json_file is not None:
        check_file("--json", json_file)

    from .. import Engine, MuloSD
    from ..eval.bench import bench_decode
    from ..eval.prompts import held_out_prompts, read_prompts
    from ..eval.report import bench_table

    own = None if prompts_file is None else read_prompts(prompts_file)
    engine = Engine.from_pretrained(family, device=device)
    with count_bar() as bar:
        report = bench_decode(
            engine,
            own or held_out_prompts(engine, prompts, seed),
            names,
            thresholds,
            mulo=MuloSD(scale=scale),
            seed=seed,
            timing_images=timing_images,
            batch_for_quality=batch_size,
            progress=lambda what, done, total: bar(what if what == "quality" else "generating", done, total),
        )
    if json_file is not None:
        write_json(json_file, report)
    stdout.print(bench_table(report))
    for note in report["notes"]:
        stdout.print(f"note: {note}", markup=False, soft_wrap=True)


def parse_decoders(text: str) -> list[str]:
    """Decoders of a comma-separated list; ValueError names the possible ones."""
    from ..engine.decoding.spec import DECODERS, parse

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"--decoders {text!r}: give one or more of {', '.join(DECODERS)}, separated by commas")
    for name in names:
        parse(name)
    return names


def parse_taus(text: str) -> list[float]:
    """Thresholds of a comma-separated list, each 0 or more."""
    try:
        taus = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--taus {text!r}: give numbers separated by commas, such as 0.001,0.01,0.05") from None
    if any(not tau >= 0 for tau in taus):
        raise ValueError(f"--taus {text!r}: a threshold is 0 (accept all) or more")
    return taus
