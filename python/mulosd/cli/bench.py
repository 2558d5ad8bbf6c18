"""`mulosd bench`: figures with their JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import bench_acceptance, bench_beside, bench_kernels, bench_photos, bench_serving, bench_speed, bench_upsamplers
from .bench_options import (
    BatchOption,
    BenchCommand,
    JsonOption,
    PromptsFileOption,
    PromptsOption,
    RunsOption,
    TimingOption,
    able,
    bench_bar,
    check_options,
    choose_prompts,
    finish,
    read_mulo,
    split_decoders,
)
from .console import examples
from .files import check_file
from .options import (
    DecoderOption,
    DeviceOption,
    FamilyOption,
    Quantization,
    QuantizationOption,
    SeedOption,
    decoders_option,
)

DECODERS = ("serial", "draft-only", "mulo", "zipar")
app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Measure speed and quality.")

DECODE_EXAMPLES = examples(
    "mulosd bench decode --prompts 8 --decoder serial,mulo",
    "mulosd bench decode --prompts 200 --json bench.json --plot bench.png --runs bench.jsonl",
    "mulosd bench decode --decoder serial,zipar,mulo:window=2 --sweep zipar=1,2,4 --sweep mulo=1e-6,1e-3",
    "mulosd bench decode --prompts-file mine.txt --decoder serial --decoder mulo:scale=2:tau=none",
    "mulosd bench decode --decoder serial,serial:dtype=bfloat16,zipar:window=8:dtype=bfloat16",
)
ABLATION_EXAMPLES = examples(
    "mulosd bench ablations --family emoji --prompts 16",
    "mulosd bench ablations --only radius --only pool --prompts 64 --json ablations.json",
    "mulosd bench ablations --decoder mulo:tau=0.001:window=2:draft_window=2 --prompts 32",
)
PLOT_EXAMPLES = examples("mulosd bench plot bench.json bench.png", "mulosd bench plot bench.json frontier.svg")


@app.callback()
def bench() -> None:
    """Measure speed and quality."""


for name, epilog, command in (
    ("kernels", bench_kernels.EXAMPLES, bench_kernels.kernels),
    ("photos", bench_photos.PHOTOS_EXAMPLES, bench_photos.photos),
    ("sheet", bench_photos.SHEET_EXAMPLES, bench_photos.sheet),
    ("acceptance", bench_acceptance.EXAMPLES, bench_acceptance.acceptance),
    ("upsamplers", bench_upsamplers.EXAMPLES, bench_upsamplers.upsamplers),
    ("throughput", bench_speed.THROUGHPUT_EXAMPLES, bench_speed.throughput),
    ("serve", bench_serving.EXAMPLES, bench_serving.serve),
    ("synthetic", bench_speed.SYNTHETIC_EXAMPLES, bench_speed.synthetic),
    ("transformers", bench_beside.EXAMPLES, bench_beside.transformers),
):
    app.command(name, cls=BenchCommand, epilog=epilog)(command)


@app.command("decode", cls=BenchCommand, epilog=DECODE_EXAMPLES)
def decode(
    family: FamilyOption = "emoji",
    prompts: PromptsOption = 16,
    prompts_file: PromptsFileOption = None,
    decoder: Annotated[list[str], decoders_option(DECODERS)] = [],  # noqa: B006
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Values of a knob, tau of mulo or window of zipar: zipar=1,2,4; may be given several times. It is "
            "swept where a decoder does not state it.",
            show_default="the decoder's",
        ),
    ] = None,
    timing_images: TimingOption = None,
    batch_size: BatchOption = 1,
    seed: SeedOption = 0,
    quantization: QuantizationOption = Quantization.none,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the frontier, as PNG, SVG or PDF.", show_default=False)
    ] = None,
    runs_file: RunsOption = None,
) -> None:
    """Compare decoders on the same prompts: seconds, forwards, rejection, likelihood, accuracy, KID-Lite0.

    On a CPU also the share that the least time of the forwards has of the seconds: weights read, or multiplied by, as
    fast as these threads can, which is measured in the same run.
    """
    texts, sweeps = split_decoders(decoder, engines=True) if decoder else [], parse_sweeps(sweep or [])
    check_options(prompts, {"--json": json_file, "--plot": plot_file, "--runs": runs_file})

    from .. import Engine
    from ..measure.decode import bench_decode, bench_table
    from ..measure.plots import check_plot, plot_frontier

    if plot_file is not None:
        check_plot(plot_file)
    engine = Engine.from_pretrained(family, device=device, quantization=quantization.value)
    chosen = choose_prompts(engine, prompts, prompts_file, seed)
    with bench_bar() as bar:
        report = bench_decode(
            engine, chosen, able(texts, DECODERS, engine.family), sweeps, seed=seed,
            timing_images=timing_images, batch_for_quality=batch_size, runs=runs_file, progress=bar,
        )  # fmt: skip
    finish(report, json_file, bench_table(report))
    if plot_file is not None:
        plot_frontier(report, plot_file)


@app.command("ablations", cls=BenchCommand, epilog=ABLATION_EXAMPLES)
def ablations(
    family: FamilyOption = "emoji",
    prompts: PromptsOption = 16,
    prompts_file: PromptsFileOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this one: rejection, matched (the same at equal forwards), radius, pool, spread, upsampler, "
            "resampling, drafting, rows or cascade; may be given several times.",
            show_default="all that the family allows",
        ),
    ] = None,
    decoder: DecoderOption = "mulo",
    rejection: Annotated[
        float,
        typer.Option(help="Share of tokens that tau is calibrated to reject, where --decoder states no tau."),
    ] = 0.01,
    timing_images: TimingOption = None,
    batch_size: BatchOption = 1,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
    runs_file: RunsOption = None,
) -> None:
    """What each part of MuLo-SD buys: one setting of --decoder is changed at a time."""
    check_options(prompts, {"--json": json_file, "--runs": runs_file})

    from .. import Engine
    from ..measure.ablations import CALIBRATION_PROMPTS, CALIBRATION_SEED, ablation_rows, bench_ablations, check_names
    from ..measure.decode import bench_table

    check_names(only or [])
    start = read_mulo(decoder)
    engine = Engine.from_pretrained(family, device=device)
    with bench_bar() as bar:
        report = bench_ablations(
            engine, choose_prompts(engine, prompts, prompts_file, seed), start, only, rejection=rejection,
            calibration_prompts=choose_prompts(engine, CALIBRATION_PROMPTS, prompts_file, CALIBRATION_SEED),
            seed=seed, timing_images=timing_images, batch_for_quality=batch_size, runs=runs_file, progress=bar,
        )  # fmt: skip
    finish(report, json_file, bench_table(report, ablation_rows(report)), base=report["base"])


@app.command("plot", epilog=PLOT_EXAMPLES)
def plot(
    report_file: Annotated[Path, typer.Argument(metavar="JSON", help="What `bench decode --json` wrote.")],
    plot_file: Annotated[Path, typer.Argument(metavar="PLOT", help="A .png, .svg or .pdf file.")],
) -> None:
    """Draw the frontier of a report again, without measuring."""
    check_file("PLOT", plot_file)
    if not report_file.is_file():
        raise ValueError(f"there is no report {report_file}; `mulosd bench decode --json` writes one")

    from ..files.texts import read_json
    from ..measure.plots import plot_frontier

    try:
        report = read_json(report_file)
        known = all({"spec", "accuracy", "kid", "nll"} <= row.keys() for row in report["rows"])
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"{report_file} is no report of `mulosd bench decode --json` of this version")
    plot_frontier(report, plot_file)


def parse_sweeps(texts: list[str]) -> dict[str, list[float]]:
    """Values by decoder from texts such as "zipar=1,2,4"; `plan_rows` checks the names."""
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--sweep {text!r}: write DECODER=VALUE,VALUE,… such as zipar=1,2,4")
        try:
            found[name.strip()] = [float(part) for part in values.split(",")]
        except ValueError:
            raise ValueError(f"--sweep {text!r}: give numbers separated by commas, such as mulo=0.001,0.01") from None
    return found
