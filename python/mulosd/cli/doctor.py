"""`mulosd doctor`: whether this machine is ready, and what to do where it is not."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from .console import examples, stdout
from .diagnose import diagnose

EXAMPLES = examples("mulosd doctor", "mulosd doctor --device cuda:1")
MARKS = {True: "[green]right[/]", False: "[red]wrong[/]", None: "[dim]-[/]    "}


def doctor(
    device: Annotated[
        str | None, typer.Option(help="The GPU to check, or cpu.", show_default="the first GPU, if there is one")
    ] = None,
) -> None:
    """Check driver, PyTorch, Triton, nvcc, the kernels against an oracle, images against the CPU's, and CUDA graphs.

    Begins with what `mulosd diagnose` prints. Without a GPU it says so and checks what a CPU can. Each failure is
    followed by what to do; the exit code is 0 only if nothing is wrong.
    """
    from ..measure.doctor import examine

    if device is not None and device != "cpu" and not device.startswith("cuda"):
        raise ValueError(f"there is no device {device!r} to check; use 'cpu', 'cuda' or 'cuda:1'")
    diagnose()
    stdout.print()
    wrong = 0
    for finding in examine(device):
        stdout.print(f"{MARKS[finding.right]} {escape(finding.check)}: {escape(finding.said)}", soft_wrap=True)
        if finding.right is False:
            wrong += 1
            stdout.print(f"      [bold]to do:[/] {escape(finding.remedy)}", soft_wrap=True)
    stdout.print(f"\n{f'[red]{wrong} wrong[/]' if wrong else '[green]all is right[/]'}", highlight=False)
    if wrong:
        raise typer.Exit(1)
