"""`mulosd bench throughput` and `mulosd bench synthetic`: speed alone."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench_options import JsonOption, PromptsFileOption, able, choose_prompts, finish, split_decoders
from .console import count_bar, examples
from .files import check_file
from .options import (
    DecodersOption,
    DeviceOption,
    DtypeOption,
    FamilyOption,
    Quantization,
    QuantizationOption,
    SeedOption,
    decoders_option,
    dtype_name,
)

THROUGHPUT = ("serial", "zipar", "mulo")
THROUGHPUT_EXAMPLES = examples(
    "mulosd bench throughput --batch 1,2,4,8,16 --decoder serial,zipar,mulo",
    "mulosd bench throughput --batch 1,8 --decoder mulo:window=2:draft_window=2 --images 32 --json throughput.json",
    "mulosd bench throughput --device cuda --dtype bfloat16 --batch 1,8,64 --stagger 4",
)
SYNTHETIC_EXAMPLES = examples(
    "mulosd bench synthetic --arch tiny --images 3",
    "mulosd bench synthetic --arch llamagen-b --grid 16 --images 1",
    "mulosd bench synthetic --arch llamagen-xl --accept 0.97 --device cuda --dtype bfloat16 --json xl.json",
    "mulosd bench synthetic --arch ar-dtok-1024 --scale 4 --decoder serial,mulo:scale=4:window=4:draft_window=4",
)


def throughput(
    family: FamilyOption = "emoji",
    batch: Annotated[str, typer.Option(help="Comma-separated: requests in flight.")] = "1,2,4,8,16",
    decoder: Annotated[list[str], decoders_option(THROUGHPUT)] = [],  # noqa: B006
    prompts_file: PromptsFileOption = None,
    images: Annotated[int, typer.Option(help="Finished images a round, decoder and batch.")] = 16,
    rounds: Annotated[int, typer.Option(help="Rounds; decoders and batches take turns in each.")] = 2,
    stagger: Annotated[
        int, typer.Option(help="Steps between the first requests; 0 begins them together, at the same phase.")
    ] = 0,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    json_file: JsonOption = None,
) -> None:
    """Images a second and latency with so many requests in flight, through the scheduler."""
    batches = parse_counts("--batch", batch)
    for option, value, least in (("--images", images, 1), ("--rounds", rounds, 1), ("--stagger", stagger, 0)):
        if value < least:
            raise ValueError(f"{option} must be at least {least}, got {value}")
    if json_file is not None:
        check_file("--json", json_file)

    from ..engine.decoding import parse
    from ..engine.engine import Engine
    from ..engine.scheduler import SchedulerConfig
    from ..measure.speed.throughput import bench_throughput, throughput_table

    named = split_decoders(decoder) if decoder else []
    engine = Engine.from_pretrained(
        family,
        device=device,
        dtype=dtype and dtype.value,
        config=SchedulerConfig(max_running=max(batches)),
        quantization=quantization.value,
    )
    prompts = choose_prompts(engine, max(batches), prompts_file, seed)
    chosen = [parse(text).resolve(engine.family) for text in able(named, THROUGHPUT, engine.family)]
    with count_bar() as bar:
        report = bench_throughput(
            engine,
            prompts,
            chosen,
            batches,
            images=images,
            rounds=rounds,
            stagger=stagger,
            seed=seed,
            progress=bar,
        )
    finish(report, json_file, throughput_table(report))


def synthetic(
    arch: Annotated[
        str,
        typer.Option(help="tiny, llamagen-b, llamagen-l, llamagen-xl, ar-dtok-512 or ar-dtok-1024."),
    ],
    accept: Annotated[float, typer.Option(help="Share of candidates that verification is made to accept.")] = 0.97,
    scale: Annotated[
        int | None, typer.Option(help="Ratio of the default MuLo-SD rows, 2 or 4.", show_default="both")
    ] = None,
    decoder: DecodersOption = [],  # noqa: B006
    baselines: Annotated[
        str | None,
        typer.Option(
            help="Loops of others, comma-separated: eager, compiled, or none. The compiled one takes minutes to "
            "compile on a CPU.",
            show_default="eager; compiled too on a GPU",
        ),
    ] = None,
    radius: Annotated[int, typer.Option(help="Radius of MuLo-SD, in cells.")] = 1,
    grid: Annotated[
        int | None, typer.Option(help="Side of the token grid.", show_default="of the architecture")
    ] = None,
    cfg_scale: Annotated[float, typer.Option(help="Guidance; 1 is off.")] = 4.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 1000,
    images: Annotated[int, typer.Option(help="Timed images of each, behind one that warms up.")] = 3,
    collapse_prefix: Annotated[
        bool, typer.Option("--collapse-prefix", help="One slot for the caption of LlamaGen models, instead of 120.")
    ] = False,
    bandwidth: Annotated[
        float | None, typer.Option(help="GB/s of memory, for the floor.", show_default="that of a copy, measured")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Speed at real sizes with random weights and planted rejections, beside the loops of others. No quality."""
    if json_file is not None:
        check_file("--json", json_file)
    if not 0 <= accept <= 1:
        raise ValueError(f"--accept must be a share from 0 to 1, got {accept}")

    from ..measure.speed.synthetic import bench_synthetic, synthetic_table

    if baselines is None:
        baselines = "eager,compiled" if device.startswith("cuda") else "eager"
    with count_bar() as bar:
        report = bench_synthetic(
            arch,
            accept=accept,
            scale=scale,
            decoders=split_decoders(decoder) if decoder else None,
            baselines=[name.strip() for name in baselines.split(",") if name.strip() not in ("", "none")],
            radius=radius,
            grid=grid,
            cfg_scale=cfg_scale,
            top_k=top_k,
            dtype=dtype_name(dtype, device),
            device=device,
            images=images,
            collapse_prefix=collapse_prefix,
            bandwidth=None if bandwidth is None else 1e9 * bandwidth,
            seed=seed,
            progress=bar,
        )
    finish(report, json_file, synthetic_table(report))


def parse_counts(option: str, text: str) -> list[int]:
    """Comma-separated numbers, each at least 1."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"{option} {text!r}: give numbers from 1 on, separated by commas, such as 1,2,4,8")
    return counts
