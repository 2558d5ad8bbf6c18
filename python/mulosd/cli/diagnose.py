"""`mulosd diagnose`: which kernel backends work here, and why the others do not."""

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
