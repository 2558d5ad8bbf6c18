"""Where the command line writes, how it lays out examples, and the progress bar of a generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    import mulosd

stdout = Console()
stderr = Console(stderr=True)

STAGES = {
    "draft": "drafting",
    "upsample": "up-sampling",
    "verify": "verifying",
    "resample": "resampling",
    "serial": "decoding serially",
    "decode": "tokens to pixels",
}


def examples(*lines: str) -> str:
    """The epilog of a command's help: one example a line."""
    return "\n\n".join(["[bold]Examples[/]", *(f"[dim]$[/] {escape(line)}" for line in lines)])


def warn(text: str) -> None:
    stderr.print(f"[bold yellow]warning:[/] {escape(text)}", soft_wrap=True)


@contextmanager
def count_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that shows one line for each `what`; silent where stderr is not a terminal."""
    columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(STAGES.get(what, what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def stage_bar() -> Iterator[Callable[[mulosd.Progress], None]]:
    """The progress callback of a generation."""
    with count_bar() as report:
        yield lambda progress: report(progress.stage, progress.done, progress.total)
