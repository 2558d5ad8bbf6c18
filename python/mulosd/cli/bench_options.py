"""Options that the benchmarks of decoders share, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..engine.atomic import write_json
from .console import count_bar, stdout, warn
from .files import check_file
from .respelled import Respelled

if TYPE_CHECKING:
    from .. import Engine
    from ..engine.family import Family

PromptsOption = Annotated[int, typer.Option(help="How many held-out prompts of the family to draw.")]
PromptsFileOption = Annotated[
    Path | None, typer.Option(help="Take prompts from this file instead, one a line.", show_default=False)
]
TimingOption = Annotated[int | None, typer.Option(help="Time only the first so many prompts.", show_default="all")]
BatchOption = Annotated[int, typer.Option(help="Images decoded together where nothing is timed.")]
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

# Options that went, and how the same is written now; `respelled` has those that became settings of a decoder.
RENAMED = {
    "--decoders": "it is --decoder now, repeated or separated by commas: --decoder serial,mulo:tau=0.01",
    "--taus": "write --sweep mulo=0.001,0.01",
    "--base": "it is --decoder now: --decoder mulo:window=2",
}


class BenchCommand(Respelled):
    """Tells the new spelling of an option that went."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for name in (arg.partition("=")[0] for arg in args):
            if name in RENAMED:
                raise ValueError(f"there is no option {name} any more: {RENAMED[name]}")
        return super().parse_args(ctx, args)


def split_decoders(texts: list[str], *, engines: bool = False) -> list[str]:
    """The texts of the decoders that `--decoder` names; ValueError says which there are.

    Args:
        texts: as they were given.
        engines: whether a decoder may also say what its engine computes in.
    """
    from ..engine.decoding import DECODERS
    from .options import read_decoders

    found = [text.strip() for part in texts for text in part.split(",") if text.strip()]
    if not found:
        raise ValueError(f"--decoder: give one or more of {', '.join(DECODERS)}")
    if engines:
        from ..measure.row_engines import split

        read_decoders([split(text)[0] for text in found])
    else:
        read_decoders(found)
    return found


def able(texts: Sequence[str], usual: Sequence[str], family: Family) -> list[str]:
    """The decoders that were named, or those of the usual ones that can draw a family; the others are told of."""
    from ..engine.decoding import parse

    if texts:
        return list(texts)
    found = []
    for name in usual:
        try:
            parse(name).resolve(family).check_layout(family)
        except ValueError as error:
            warn(f"{name} is left out: {error}")
        else:
            found.append(name)
    return found


def read_mulo(text: str) -> Any:
    """The decoder of `--decoder` where it has to be mulo."""
    from .. import MuloSD
    from .options import read_decoder

    found = read_decoder(text)
    if not isinstance(found, MuloSD):
        raise ValueError(f"--decoder {text!r}: this measures mulo; write mulo or mulo:key=value:…")
    return found


def check_options(prompts: int, files: dict[str, Path | None]) -> None:
    """ValueError for too few prompts, or a file that cannot be written."""
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")
    for option, file in files.items():
        if file is not None:
            check_file(option, file)


def choose_prompts(engine: Engine, n: int, file: Path | None, seed: int) -> list[str]:
    """The prompts of a file, or so many held-out ones or classes of the family."""
    from ..measure.prompts import default_prompts, read_prompts

    return default_prompts(engine, n, seed) if file is None else read_prompts(file)


@contextmanager
def bench_bar() -> Iterator[Callable[[str, int, int], None]]:
    """The progress of a benchmark: one line for all decoders, and one for their quality."""
    with count_bar() as bar:
        yield lambda what, done, total: bar(what if what == "quality" else "generating", done, total)


def finish(report: dict[str, Any], json_file: Path | None, *tables: Any, base: str | None = None) -> None:
    """Write a report and show what it says."""
    if json_file is not None:
        write_json(json_file, report)
    for table in tables:
        stdout.print(table)
    if base is not None:
        stdout.print(f"base: {base}", markup=False, soft_wrap=True)
    tell(report.get("notes", []))


def tell(notes: list[str]) -> None:
    for note in notes:
        stdout.print(f"note: {note}", markup=False, soft_wrap=True)
