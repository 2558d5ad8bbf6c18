"""`mulosd bench transformers`: the hub's models beside transformers' own loop."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench_options import JsonOption, finish, split_decoders
from .console import count_bar, examples
from .files import check_file
from .options import DecodersOption, SeedOption

EXAMPLES = examples(
    "OMP_NUM_THREADS=1 mulosd bench transformers --model janus --grid 16",
    "OMP_NUM_THREADS=1 mulosd bench transformers --model emu3 --grid 16 --accept 0.95 --images 1",
    "mulosd bench transformers --model glm-image --grid 16 --decoder jacobi:window=8 --json glm.json",
)


def transformers(
    model: Annotated[str, typer.Option(help="janus, emu3 or glm-image.")],
    grid: Annotated[int, typer.Option(help="Side of the image in codes, even.")] = 16,
    decoder: DecodersOption = [],  # noqa: B006
    accept: Annotated[
        str, typer.Option(metavar="N,N", help="Shares of candidates that verification is made to accept.")
    ] = "0.9,0.95,0.99",
    images: Annotated[int, typer.Option(help="Timed images of each, behind one that warms up.")] = 3,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Speed of a model of the hub beside `transformers.generate` with a static cache, on random weights. No quality."""
    if json_file is not None:
        check_file("--json", json_file)
    try:
        shares = [float(part) for part in accept.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"--accept {accept!r}: give shares from 0 to 1, separated by commas, such as 0.9,0.99")

    from ..measure.speed.beside import bench_beside, beside_table

    with count_bar() as bar:
        report = bench_beside(
            model,
            grid=grid,
            decoders=split_decoders(decoder) if decoder else None,
            accept=shares,
            images=images,
            seed=seed,
            progress=bar,
        )
    finish(report, json_file, beside_table(report))
