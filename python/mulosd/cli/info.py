"""`mulosd info`: families and what they know."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .console import examples, stdout

if TYPE_CHECKING:
    from .. import Engine

EXAMPLES = examples("mulosd info", "mulosd info emoji", "mulosd info ./runs/mine/family --json")


def info(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="A family, by name or folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the families, or tell one's scales, sizes, objects, backgrounds and calibrated settings."""
    from .. import Engine, list_families

    if family is not None:
        described = [describe(Engine.from_pretrained(family))]
    else:
        described = [describe(Engine.from_pretrained(name)) for name in list_families()]
    if as_json:
        typer.echo(json.dumps(described[0] if family is not None else {"families": described}, indent=2))
    elif family is not None:
        show(described[0])
    else:
        show_all(described)


def describe(engine: Engine) -> dict[str, Any]:
    """What `--json` prints of one family."""
    f = engine.family
    return {
        "name": f.name,
        "path": str(f.path),
        "image_sizes": list(f.image_sizes),
        "grids": list(f.grids),
        "patch": f.patch,
        "scales": list(f.scales),
        "objects": list(f.objects),
        "backgrounds": list(f.backgrounds),
        "words": sorted(f.vocabulary.phrases),
        "calibration": f.metadata.get("calibration", {}),
        "parameters": f.parameters(),
    }


def show_all(families: list[dict[str, Any]]) -> None:
    if not families:
        stdout.print("No family is bundled with this installation; `mulosd train` makes one.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("family", "pictures", "scales", "objects", "parameters", "folder"):
        table.add_column(column, overflow="fold")
    for f in families:
        table.add_row(
            f["name"],
            f"{max(f['image_sizes'])} px",
            ", ".join(map(str, f["scales"])),
            str(len(f["objects"])),
            f"{sum(f['parameters'].values()):,}",
            escape(f["path"]),
        )
    stdout.print(table)
    stdout.print("\n[dim]mulosd info FAMILY tells what one knows.[/]")


def show(f: dict[str, Any]) -> None:
    sizes = ", ".join(
        f"{size} px ({grid}x{grid} tokens)" for size, grid in zip(f["image_sizes"], f["grids"], strict=True)
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = {
        "family": f["name"],
        "folder": f["path"],
        "pictures": sizes,
        "scales": ", ".join(map(str, f["scales"])),
        "objects": ", ".join(f["objects"]),
        "backgrounds": ", ".join(f["backgrounds"]),
        "words": ", ".join(f["words"]),
        "parameters": ", ".join(f"{name} {count:,}" for name, count in f["parameters"].items()),
        "calibrated": json.dumps(f["calibration"]) if f["calibration"] else "no; `mulosd calibrate` does it",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    stdout.print(table, highlight=False)
