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


KERNEL_EXAMPLES = examples(
    "mulosd bench kernels --quick",
    "mulosd bench kernels --device cuda --csv kernels.csv --plot kernels.png",
    "mulosd bench kernels --op verify_attention --op kv_write --backend triton --backend peers --device cuda",
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
        typer.Option(
            help="Comma-separated: serial, draft-only, mulo, zipar, jacobi, eagle; with settings: "
            "mulo:window=2:tau=0.01, eagle:depth=4:top_k=4, eagle:lantern_k=64:delta=0.2."
        ),
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


@app.command("kernels", epilog=KERNEL_EXAMPLES)
def kernels(
    op: Annotated[
        list[str] | None, typer.Option(help="Only this op; may be given several times.", show_default="all")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Only cuda, triton, torch or peers; may be given several times.", show_default="all"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller shapes, less time each.")] = False,
    device: DeviceOption = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the rows to this file.", show_default=False)
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Also write the rows to this file.", show_default=False)
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the medians, as PNG, SVG or PDF.", show_default=False)
    ] = None,
) -> None:
    """Time every kernel beside its floor and its peers; a wrong result is not timed, and the exit code is then 1."""
    for option, file in (("--json", json_file), ("--csv", csv_file), ("--plot", plot_file)):
        if file is not None:
            check_file(option, file)
    if plot_file is not None and plot_file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot {plot_file}: name a .png, .svg or .pdf file")

    from ..bench import bench_kernels, write_csv
    from ..bench.report import as_json, kernel_table, plot, reasons

    with count_bar() as bar:
        rows = bench_kernels(op, backend, device=device, quick=quick, progress=bar)
    if json_file is not None:
        write_json(json_file, as_json(rows))
    if csv_file is not None:
        write_csv(csv_file, rows)
    stdout.print(kernel_table(rows))
    if rows:
        about = rows[0]
        stdout.print(f"{about.device}; {about.versions}; {about.commit} {about.date}", markup=False, soft_wrap=True)
    for reason in reasons(rows):
        stdout.print(reason, markup=False, soft_wrap=True)
    if plot_file is not None:
        plot(rows, plot_file)
    if any(row.status == "failed" for row in rows):
        raise typer.Exit(1)


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
