"""Options that the benchmarks of decoders share, and what they make of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import stdout
from .files import check_file

if TYPE_CHECKING:
    from .. import Engine

PromptsOption = Annotated[int, typer.Option(help="How many held-out prompts of the family to draw.")]
PromptsFileOption = Annotated[
    Path | None, typer.Option(help="Take prompts from this file instead, one a line.", show_default=False)
]
TimingOption = Annotated[int | None, typer.Option(help="Time only the first so many prompts.", show_default="all")]
BatchOption = Annotated[int, typer.Option(help="Pictures decoded together where nothing is timed.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Also write the figures to this file.", show_default=False)
]
RunsOption = Annotated[
    Path | None,
    typer.Option(
        "--runs",
        help="Keep every run in this file as it is made; the same call takes up from it what an interrupted one left.",
        show_default=False,
    ),
]


def check_options(prompts: int, files: dict[str, Path | None]) -> None:
    """ValueError for too few prompts, or a file that cannot be written."""
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")
    for option, file in files.items():
        if file is not None:
            check_file(option, file)


def choose_prompts(engine: Engine, n: int, file: Path | None, seed: int) -> list[str]:
    """The prompts of a file, or so many held-out ones or classes of the family."""
    from ..eval.prompts import default_prompts, read_prompts

    return default_prompts(engine, n, seed) if file is None else read_prompts(file)


def tell(notes: list[str]) -> None:
    for note in notes:
        stdout.print(f"note: {note}", markup=False, soft_wrap=True)
