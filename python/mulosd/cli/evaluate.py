"""`mulosd evaluate`: images of several decoders, measured and laid side by side."""

from __future__ import annotations

import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bench_options import able, bench_bar, check_options, choose_prompts, finish, split_decoders
from .console import count_bar, examples, stdout
from .options import (
    DeviceOption,
    DtypeOption,
    FamilyOption,
    Quantization,
    QuantizationOption,
    SamplingOption,
    SeedOption,
    decoders_option,
    read_sampling,
)

if TYPE_CHECKING:
    from .. import Engine, SamplingParams

EXAMPLES = examples(
    "mulosd evaluate --decoder serial --decoder mulo --prompts 64 --report out/emoji",
    "mulosd evaluate --decoder serial,draft-only,mulo:tau=0.01:window=2 --prompts mine.txt "
    "--num-images 4 --report out/mine",
    "mulosd evaluate --family families/mine --prompts mine.txt --reference photos/ --report out/mine",
    "mulosd evaluate --family families/tar --decoder serial,mulo --protocol geneval "
    "--prompts geneval/prompts/evaluation_metadata.jsonl --report out/geneval",
    "mulosd evaluate --family families/tar --decoder serial,mulo --protocol coco-fid "
    "--prompts annotations/captions_val2014.json --reference val2014/ --limit 30000 --report out/coco",
)
# Without --protocol; with it they have no meaning.
NUM_IMAGES, REAL, SHOW = 2, 256, 16
DECODERS = ("serial", "draft-only", "mulo")
PLACES = "GenEval, DPG-Bench, FID on MS-COCO or HPSv2"


class ProtocolName(str, Enum):
    geneval = "geneval"
    dpg = "dpg"
    coco_fid = "coco-fid"
    hpsv2 = "hpsv2"


def evaluate(
    report: Annotated[
        Path, typer.Option(help="Folder for images, report.json and report.html; the same call goes on in it.")
    ],
    family: FamilyOption = "emoji",
    decoder: Annotated[list[str], decoders_option(DECODERS)] = [],  # noqa: B006
    prompts: Annotated[
        str,
        typer.Option(
            help="So many of the family's own (held-out scenes; classes as frequent as among held-out photos), or a "
            "file with one a line. With --protocol the official prompts.",
            metavar="N|FILE",
        ),
    ] = "16",
    reference: Annotated[
        str,
        typer.Option(
            help="Real images to compare with: builtin (held-out ones of the family's data) or a folder. For "
            "coco-fid a folder, or stats:NAME of clean-fid.",
            metavar="builtin|DIR",
        ),
    ] = "builtin",
    protocol: Annotated[
        ProtocolName | None,
        typer.Option(help=f"Write images as the scorer of {PLACES} reads them.", show_default=False),
    ] = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            "-n",
            help="Images of each prompt; diversity within prompts needs two.",
            show_default=f"{NUM_IMAGES}, or the protocol's",
        ),
    ] = None,
    real: Annotated[
        int | None,
        typer.Option(
            help="How many real images to compare with; a family of photos has so many as it keeps features of.",
            show_default=str(REAL),
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="With --protocol: only so many prompts.", show_default="all; coco-fid 30000")
    ] = None,
    show: Annotated[
        int | None, typer.Option(help="Prompts whose images the report shows side by side.", show_default=str(SHOW))
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Images drawn together: faster, but seconds are then those of a batch.")
    ] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop what an earlier evaluation left in the folder.")
    ] = False,
    sampling: SamplingOption = "",
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    device: DeviceOption = "cpu",
) -> None:
    """Judge decoders by their images of the same prompts and seeds: distance to real ones, accuracy, likelihood,
    diversity, seams. Differences are to the first decoder.

    Writes a report to open in a browser. An interrupted call goes on where it stopped.
    """
    named = split_decoders(decoder) if decoder else []
    counts = {"--num-images": num_images, "--batch-size": batch_size, "--limit": limit, "--real": real}
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if show is not None and show < 0:
        raise ValueError(f"--show must be 0 or more, got {show}")
    if protocol is None and limit is not None:
        raise ValueError("--limit belongs to --protocol; give a smaller --prompts N instead")
    for option, value in (("--num-images", num_images), ("--real", real), ("--show", show)):
        if protocol is not None and value is not None:
            raise ValueError(f"{option} has no meaning with --protocol {protocol.value}; leave it out")
    command = shlex.join(["mulosd", *sys.argv[1:]])

    from .. import Engine

    def load() -> tuple[Engine, SamplingParams]:
        engine = Engine.from_pretrained(
            family, device=device, dtype=dtype and dtype.value, quantization=quantization.value
        )
        return engine, read_sampling(engine.family, sampling)

    if protocol is not None:
        from ..measure.protocols import make_protocol, protocol_table, run_protocol

        official = make_protocol(protocol.value, Path(prompts), reference, limit)
        engine, params = load()
        names = able(named, DECODERS, engine.family)
        with count_bar() as bar:
            found = run_protocol(
                engine, official, names, report, sampling=params, seed=seed, batch_size=batch_size,
                overwrite=overwrite, command=command, progress=bar,
            )  # fmt: skip
        finish(found, None, protocol_table(found))
        return

    from ..engine.atomic import atomic
    from ..measure.evaluate import evaluate as run
    from ..measure.evaluate import evaluation_table
    from ..measure.page import check_page, render

    check_page()
    engine, params = load()
    asked = choose(engine, prompts, seed)
    names = able(named, DECODERS, engine.family)
    with bench_bar() as bar:
        evaluation = run(
            engine, asked, names, report,
            reference=None if reference == "builtin" else Path(reference), real=real or REAL,
            num_images=num_images or NUM_IMAGES,
            sampling=params, seed=seed, batch_size=batch_size, overwrite=overwrite, command=command,
            progress=bar,
        )  # fmt: skip
    page = render(evaluation, SHOW if show is None else show)
    with atomic(report / "report.html") as file:
        file.write(page.encode())
    finish(evaluation.report, None, evaluation_table(evaluation.report))
    stdout.print(f"{report / 'report.html'}", markup=False, soft_wrap=True, highlight=False)


def choose(engine: Engine, text: str, seed: int) -> list[str]:
    """The prompts of a file, or so many of the family's own."""
    if not text.strip().lstrip("+-").isdecimal():
        return choose_prompts(engine, 0, Path(text), seed)
    check_options(int(text), {})
    return choose_prompts(engine, int(text), None, seed)
