"""`mulosd diagnose`: which kernel backends work here and why the others do not, and how the CPU multiplies."""

from __future__ import annotations

import platform
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from .._version import __version__
from .console import examples, stdout

EXAMPLES = examples("mulosd diagnose")


def diagnose() -> None:
    """Print versions, the device, and for each kernel the usable backends with the reason where one is not."""
    import torch

    from ..kernels.registry import diagnose as backends

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    stdout.print(
        f"mulosd {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} CPU threads, GPU: {gpu}\n",
        highlight=False,
    )
    built = Path(__file__).parents[1] / "native.txt"  # what setup.py did about mulosd._C
    if built.is_file():
        stdout.print(f"{escape(built.read_text().strip())}\n", highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("op", "backend", "usable", "reason"):
        table.add_column(column, overflow="fold")
    for status in backends():
        mark = "[green]yes[/]" if status.usable else "[red]no[/]"
        table.add_row(status.op, status.backend, mark, escape(status.reason))
    stdout.print(table)
    stdout.print()
    linear_layers()


def linear_layers() -> None:
    """Print what was chosen for the layers of the bundled family on this CPU, measuring it where that was not done."""
    from ..engine.engine import Engine
    from ..engine.linear_choice import CLEARLY, described, kept_file, key
    from ..engine.models.linear import CLASS_ROWS

    about = key()
    engine = Engine.from_pretrained("emoji", device="cpu", linear="auto")
    stdout.print(
        f"CPU: {about['processor']}, torch for {about['capability']}, host kernels for {about['native']}, "
        f"{about['threads']} threads.\nLinear layers of the family emoji: another way than F.linear is taken where it "
        f"needs less than {CLEARLY} of its time, shown beside it; times are kept in {escape(str(kept_file()))}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("inputs x weights N x K", *(f"{rows} rows" for rows in CLASS_ROWS)):
        table.add_column(column, overflow="fold")
    for name, cells in described(engine.linear_times):
        table.add_row(escape(name), *cells)
    stdout.print(table)
