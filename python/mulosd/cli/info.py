"""`mulosd info`: families and what they know."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from .console import examples, stdout
from .memory import device_memory, parse_memory, show_bytes
from .options import DeviceOption, DtypeOption, Quantization, QuantizationOption, dtype_name

if TYPE_CHECKING:
    from ..engine.family import Family

EXAMPLES = examples(
    "mulosd info",
    "mulosd info emoji",
    "mulosd info ./runs/mine/family --json",
    "mulosd info ./families/tar --memory 24GiB --dtype bfloat16",
)


def info(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="A family, by name or folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    memory: Annotated[
        str | None, typer.Option(help="Plan for so much, such as 24GiB.", show_default="all of the device's")
    ] = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    device: DeviceOption = "cpu",
) -> None:
    """List the families, or tell one's scales, sizes, objects, backgrounds or classes, and calibrated settings.

    For one family also what it takes: parameters, bytes of keys and values a request, and the largest batch that fits
    into the memory (an estimate). No weights are read.
    """
    available = device_memory(device) if memory is None else parse_memory(memory)

    from ..engine.family import list_families
    from ..engine.hub import load_family

    names = list_families() if family is None else [family]
    loaded = [load_family(name, weights=False).quantize(quantization.value) for name in names]
    on_gpu = device.startswith("cuda")
    described = [describe(one, dtype_name(dtype, device), available, on_gpu) for one in loaded]
    if as_json:
        typer.echo(json.dumps(described[0] if family is not None else {"families": described}, indent=2))
    elif family is not None:
        show(described[0])
    else:
        show_all(described)


def describe(f: Family, dtype: str, available: int, on_gpu: bool) -> dict[str, Any]:
    """What `--json` prints of one family."""
    from ..data.family import scene_words
    from ..engine.conditioning import ClassConditioner
    from ..engine.decoding.default import applying, default_decoder
    from ..engine.dtypes import DTYPES
    from ..engine.memory import plan_memory
    from ..engine.models.kinds import AR_MODELS, kind_of

    objects, backgrounds = scene_words(f)
    plan = plan_memory(f, DTYPES[dtype])
    return {
        "name": f.name,
        "path": str(f.path),
        "image_sizes": list(f.image_sizes),
        "grids": list(f.grids),
        "patch": f.patch,
        "scales": list(f.scales),
        "objects": objects,
        "backgrounds": backgrounds,
        "words": sorted(f.vocabulary.phrases),
        "classes": f.conditioner.names if isinstance(f.conditioner, ClassConditioner) else [],
        "default": {"decoder": default_decoder(f), "scale": f.scale, "upsampler": f.upsampler},
        "calibration": {key: asdict(c) for key, c in f.config.calibrations.items()},
        "conditions": f.conditioner.kind,
        "models": [kind_of(model, AR_MODELS) for model in f.models],
        "layout": layout_text(f),
        "decoders": applying(f),
        "parameters": f.parameters(),
        "memory": {
            "dtype": dtype,
            "quantization": f.quantization,
            "available": available,
            "weights": plan.weights,
            "kv_per_request": plan.kv,
            "request": plan.request,
            "working": plan.working,
            "graphs": {"1": plan.graphs(1), "16": plan.graphs(16)},
            "largest_batch": plan.largest_batch(available, graphs=on_gpu),
        },
    }


def layout_text(f: Family) -> str:
    """How the tokens of an image stand in a sequence, in words; empty for a raster of codes."""
    layout = f.ar.layout(f.grids[-1])
    said = [f"a grid of {first}x{first} tokens before the image" for first in layout.grids[:-1]]
    said += ["a token at the end of each row"] if layout.row_ends else []
    return ", ".join(said)


def show_all(families: list[dict[str, Any]]) -> None:
    if not families:
        stdout.print("No family is bundled with this installation; `mulosd train` makes one.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("family", "images", "scales", "draws", "parameters", "folder"):
        table.add_column(column, overflow="fold")
    for f in families:
        table.add_row(
            f["name"],
            f"{max(f['image_sizes'])} px",
            ", ".join(map(str, f["scales"])),
            f"{len(f['classes'])} classes" if f["classes"] else f"{len(f['objects'])} objects",
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
    memory = f["memory"]
    held = f", layers in {memory['quantization']}" if memory["quantization"] else ""
    rows = {
        "family": f["name"],
        "folder": f["path"],
        "images": sizes,
        "scales": ", ".join(map(str, f["scales"])),
        "objects": ", ".join(f["objects"]),
        "backgrounds": ", ".join(f["backgrounds"]),
        "words": ", ".join(f["words"]),
        "classes": "; ".join(f["classes"]),
        "conditions": f["conditions"],
        "layout": f["layout"],
        "decoders": ", ".join(name for name, reason in f["decoders"].items() if not reason),
        "default": f["default"]["decoder"],
        "parameters": ", ".join(f"{name} {count:,}" for name, count in f["parameters"].items()),
        "weights": f"{show_bytes(memory['weights'])} in {memory['dtype']}{held} (tokenizer and up-samplers in float32)",
        "keys and values": ", ".join(
            f"{show_bytes(n)} a request at {grid}x{grid}" for grid, n in memory["kv_per_request"].items()
        ),
        "graphs on a GPU": ", ".join(
            f"{show_bytes(n)} for {count} request{'s' * (count != '1')}" for count, n in memory["graphs"].items()
        ),
        "largest batch": f"{memory['largest_batch']} in {show_bytes(memory['available'])} (estimate)",
        "calibrated": json.dumps(f["calibration"]) if f["calibration"] else "no; `mulosd calibrate` does it",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    stdout.print(table, highlight=False)
