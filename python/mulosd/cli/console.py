"""Where the command line writes, how it lays out examples, and the progress bar of a generation."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..screen import Screen, printable

if TYPE_CHECKING:
    import mulosd


class Pipe(Screen):
    """A console that raises when nobody reads it, where rich ends the program."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Diagnostics(Pipe):
    """The console of warnings and errors: one that cannot be written stops nothing."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            silence(self.file)


class Lines:
    """Lines that go along with files: when they cannot be written, the work goes on, and `error` holds why.

    Args:
        on: where they go.
    """

    def __init__(self, on: Console) -> None:
        self.on = on
        self.error: OSError | None = None

    def print(self, markup: str) -> None:
        if self.error is None:
            try:
                self.on.print(markup, soft_wrap=True, highlight=False)
            except OSError as error:
                self.error = error
                silence(self.on.file)


def silence(file: IO[str]) -> None:
    """Send what is written to a broken stream nowhere, so that Python can flush it when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)


stdout = Screen()
stderr = Diagnostics(stderr=True)

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
    stderr.print(f"[bold yellow]warning:[/] {escape(printable(text, keep=''))}", soft_wrap=True)


@contextmanager
def count_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that shows one line for each `what`; silent where stderr is not a terminal."""
    columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(
        *columns,
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
        # What goes to a file or a pipe is not for the terminal.
        redirect_stdout=stdout.is_terminal,
    )
    with bars:
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
