"""`mulosd bench`: figures with their JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..atomic import write_json
from . import bench_acceptance, bench_kernels, bench_photos, bench_speed, bench_upsamplers
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
from .files import check_file
from .options import DeviceOption, FamilyOption, ScaleOption, SeedOption

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure speed and quality.")

DECODE_EXAMPLES = examples(
    "mulosd bench decode --prompts 8 --decoders serial,mulo",
    "mulosd bench decode --prompts 200 --json bench.json --plot bench.png --runs bench.jsonl",
    "mulosd bench decode --decoders serial,zipar,mulo:window=2 --sweep zipar=1,2,4 --sweep mulo=1e-6,1e-3",
    "mulosd bench decode --prompts-file mine.txt --taus 0.001,0.01,0.05 --scale 2",
)
ABLATION_EXAMPLES = examples(
    "mulosd bench ablations --family emoji --prompts 16",
    "mulosd bench ablations --only radius --only pool --prompts 64 --json ablations.json",
    "mulosd bench ablations --base mulo:tau=0.001:window=2:draft_window=2 --prompts 32",
)
PLOT_EXAMPLES = examples("mulosd bench plot bench.json bench.png", "mulosd bench plot bench.json frontier.svg")


@app.callback()
def bench() -> None:
    """Measure speed and quality."""


app.command("kernels", epilog=bench_kernels.EXAMPLES)(bench_kernels.kernels)
app.command("photos", epilog=bench_photos.PHOTOS_EXAMPLES)(bench_photos.photos)
app.command("sheet", epilog=bench_photos.SHEET_EXAMPLES)(bench_photos.sheet)
app.command("acceptance", epilog=bench_acceptance.EXAMPLES)(bench_acceptance.acceptance)
app.command("upsamplers", epilog=bench_upsamplers.EXAMPLES)(bench_upsamplers.upsamplers)
app.command("throughput", epilog=bench_speed.THROUGHPUT_EXAMPLES)(bench_speed.throughput)
app.command("synthetic", epilog=bench_speed.SYNTHETIC_EXAMPLES)(bench_speed.synthetic)


@app.command("decode", epilog=DECODE_EXAMPLES)
def decode(
    family: FamilyOption = "emoji",
    prompts: PromptsOption = 16,
    prompts_file: PromptsFileOption = None,
    decoders: Annotated[
        str,
        typer.Option(
            help="Comma-separated, with settings: mulo:window=2:tau=0.01, eagle:lantern_k=64:delta=0.2. A decoder that "
            "does not state its knob (tau of mulo, window of zipar) is swept over it."
        ),
    ] = "serial,draft-only,mulo,zipar",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values of a knob: zipar=1,2,4; may be given several times.", show_default="the decoder's"),
    ] = None,
    taus: Annotated[
        str | None, typer.Option(help="The same as --sweep mulo=…", show_default="from the calibrated one to 0.05")
    ] = None,
    scale: ScaleOption = None,
    timing_images: TimingOption = None,
    batch_size: BatchOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the frontier, as PNG, SVG or PDF.", show_default=False)
    ] = None,
    runs_file: RunsOption = None,
) -> None:
    """Compare decoders on the same prompts: seconds, forwards, rejection, likelihood, object accuracy, KID-Lite0."""
    names = parse_decoders(decoders)
    sweeps = parse_sweeps(sweep or [])
    if taus is not None:
        sweeps["mulo"] = parse_taus(taus)
    check_options(prompts, {"--json": json_file, "--plot": plot_file, "--runs": runs_file})

    from .. import Engine, MuloSD
    from ..eval.bench import bench_decode
    from ..eval.frontier import check_plot, plot_frontier
    from ..eval.report import bench_table

    if plot_file is not None:
        check_plot(plot_file)
    engine = Engine.from_pretrained(family, device=device)
    with count_bar() as bar:
        report = bench_decode(
            engine,
            choose_prompts(engine, prompts, prompts_file, seed),
            names,
            sweeps,
            mulo=MuloSD(scale=scale),
            seed=seed,
            timing_images=timing_images,
            batch_for_quality=batch_size,
            runs=runs_file,
            progress=lambda what, done, total: bar(what if what == "quality" else "generating", done, total),
        )
    if json_file is not None:
        write_json(json_file, report)
    stdout.print(bench_table(report))
    tell(report["notes"])
    if plot_file is not None:
        plot_frontier(report, plot_file)


@app.command("ablations", epilog=ABLATION_EXAMPLES)
def ablations(
    family: FamilyOption = "emoji",
    prompts: PromptsOption = 16,
    prompts_file: PromptsFileOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this one: rejection, matched (the same at equal forwards), radius, pool, threshold, spread, "
            "upsampler, refine, resampling, drafting, rows or cascade; may be given several times.",
            show_default="all that the family allows",
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="What is changed, one setting at a time.")] = "mulo",
    rejection: Annotated[
        float,
        typer.Option(help="Share of tokens that tau is calibrated to reject, where --base states no tau."),
    ] = 0.01,
    timing_images: TimingOption = None,
    batch_size: BatchOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
    runs_file: RunsOption = None,
) -> None:
    """What each part of MuLo-SD buys: rejection, radius, pooling, up-sampler, parallel resampling, rows, cascade."""
    check_options(prompts, {"--json": json_file, "--runs": runs_file})

    from .. import Engine, MuloSD
    from ..engine.decoding.spec import parse
    from ..eval.ablations import CALIBRATION_PROMPTS, CALIBRATION_SEED, ablation_rows, bench_ablations, check_names
    from ..eval.report import bench_table

    check_names(only or [])
    start = parse(base)
    if not isinstance(start, MuloSD):
        raise ValueError(f"--base {base!r}: the ablations are of mulo; write mulo:key=value:…")
    engine = Engine.from_pretrained(family, device=device)
    with count_bar() as bar:
        report = bench_ablations(
            engine,
            choose_prompts(engine, prompts, prompts_file, seed),
            start,
            only,
            rejection=rejection,
            calibration_prompts=choose_prompts(engine, CALIBRATION_PROMPTS, prompts_file, CALIBRATION_SEED),
            seed=seed,
            timing_images=timing_images,
            batch_for_quality=batch_size,
            runs=runs_file,
            progress=lambda what, done, total: bar(what if what == "quality" else "generating", done, total),
        )
    if json_file is not None:
        write_json(json_file, report)
    stdout.print(bench_table(report, ablation_rows(report)))
    stdout.print(f"base: {report['base']}", markup=False, soft_wrap=True)
    tell(report["notes"])


@app.command("plot", epilog=PLOT_EXAMPLES)
def plot(
    report_file: Annotated[Path, typer.Argument(metavar="JSON", help="What `bench decode --json` wrote.")],
    plot_file: Annotated[Path, typer.Argument(metavar="PLOT", help="A .png, .svg or .pdf file.")],
) -> None:
    """Draw the frontier of a report again, without measuring."""
    check_file("PLOT", plot_file)
    if not report_file.is_file():
        raise ValueError(f"there is no report {report_file}; `mulosd bench decode --json` writes one")

    from ..eval.frontier import plot_frontier

    try:
        report = json.loads(report_file.read_text(encoding="utf-8"))
        known = all({"spec", "accuracy", "kid", "nll"} <= row.keys() for row in report["rows"])
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"{report_file} is no report of `mulosd bench decode --json` of this version")
    plot_frontier(report, plot_file)


def parse_decoders(text: str, option: str = "--decoders") -> list[str]:
    """Decoders of a comma-separated list; ValueError names the possible ones."""
    from ..engine.decoding.spec import DECODERS, parse

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(f"{option} {text!r}: give one or more of {', '.join(DECODERS)}, separated by commas")
    for name in names:
        parse(name)
    return names


def parse_sweeps(texts: list[str]) -> dict[str, list[float]]:
    """Values by decoder from texts such as "zipar=1,2,4"; `plan_rows` checks the names."""
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--sweep {text!r}: write DECODER=VALUE,VALUE,… such as zipar=1,2,4")
        found[name.strip()] = parse_numbers(f"--sweep {text!r}", values)
    return found


def parse_taus(text: str) -> list[float]:
    """Thresholds of a comma-separated list, each 0 or more."""
    taus = parse_numbers(f"--taus {text!r}", text)
    if any(not tau >= 0 for tau in taus):
        raise ValueError(f"--taus {text!r}: a threshold is 0 (accept all) or more")
    return taus


def parse_numbers(what: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{what}: give numbers separated by commas, such as 0.001,0.01,0.05") from None
