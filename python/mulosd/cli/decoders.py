"""`mulosd decoders`: every decoder with its settings."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .console import examples, stdout

EXAMPLES = examples("mulosd decoders", "mulosd decoders mulo", 'mulosd generate "a cat" --decoder zipar:window=8')


def decoders(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this decoder, with what settings mean.")
    ] = None,
) -> None:
    """List the decoders with their settings, types and defaults, as `--decoder NAME:KEY=VALUE:…` takes them.

    `none` leaves a setting to the family: to what was calibrated with it, where there is such a thing.
    """
    from ..engine.decoding import DECODERS, parse

    kinds = DECODERS if name is None else {name: type(parse(name))}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("decoder", "setting", "type", "default", *(() if name is None else ("meaning",))):
        table.add_column(column, overflow="fold", no_wrap=column != "meaning")
    for own, kind in kinds.items():
        label = own
        for setting in described(kind):
            table.add_row(label, *(escape(text) for text in setting[: 3 if name is None else 4]))
            label = ""
    if name is None:
        for own, kind in kinds.items():
            stdout.print(f"[bold]{own:12}[/]{escape(summary(kind))}", soft_wrap=True, highlight=False)
        stdout.print()
    else:
        stdout.print(f"{escape(' '.join((inspect.getdoc(kinds[name]) or '').split('Args:')[0].split()))}\n")
    stdout.print(table)
    if name is None:
        stdout.print("\n[dim]mulosd decoders NAME tells what the settings of one mean.[/]")


def summary(kind: type[Any]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def described(kind: type[Any]) -> list[tuple[str, str, str, str]]:
    """Setting, type, default and meaning, from the class of a decoder and its docstring."""
    from ..engine.decoding import Lantern
    from ..engine.decoding.strategy import STRATEGIES

    # What a class holds as objects, a text states as settings: eagle's `relaxed`, and the `strategies` of mulo.
    lantern = meanings(Lantern)
    known = {"lantern_k": f"accept as LANTERN does, lossy: {lantern['k']}", "delta": lantern["delta"]}
    known |= {name: " ".join(meanings(s).values()) or summary(s) for name, s in STRATEGIES.items()} | meanings(kind)
    usual = {"delta": Lantern.delta, **kind().settings()}
    return [
        (name, of.replace(" | None", ""), str(usual.get(name)).lower(), known.get(name, ""))
        for name, of in kind.text_settings().items()
    ]


def meanings(kind: type[Any]) -> dict[str, str]:
    """The arguments that the docstring of a class explains."""
    _, _, arguments = (inspect.getdoc(kind) or "").partition("Args:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.M)
    return {name: " ".join(text.split()) for name, text in entries}
