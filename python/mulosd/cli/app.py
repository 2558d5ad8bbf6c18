"""The root of the command line: sub-commands, the version, and how mistakes are told."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from .._version import __version__
from ..screen import printable
from . import batch, bench, calibrate, convert, decoders, diagnose, doctor, evaluate, generate, info, serve, train
from .console import silence, stderr
from .respelled import Respelled


class Commands(TyperGroup):
    """Tells a caller's mistake in one line and exits with 2, as usage errors do; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise  # these are RuntimeErrors too, but no failures
        except BrokenPipeError as error:
            # Who reads the output has seen enough (`mulosd info emoji | head`): no words, and click's code for it.
            silence(sys.stdout)
            raise typer.Exit(1) from error
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            if ctx.params.get("traceback") or not is_mistake(error):
                raise
            # One line, whatever is in a file's name; why no backend serves a call takes several.
            lines = "\n" if isinstance(error, RuntimeError) else ""
            stderr.print(f"[bold red]error:[/] {escape(printable(str(error), keep=lines))}", soft_wrap=True)
            raise typer.Exit(2) from error


def is_mistake(error: Exception) -> bool:
    """Whether the caller can mend what went wrong; other runtime errors are bugs."""
    if not isinstance(error, RuntimeError):
        return True
    from ..kernels.registry import BackendUnavailable

    return isinstance(error, BackendUnavailable)


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"mulosd {__version__}")
        raise typer.Exit()


app = typer.Typer(
    name="mulosd",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Start with: [bold]mulosd generate "a cat left of a guitar on a yellow background"[/]',
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error was raised instead of one line.")
    ] = False,
) -> None:
    """Fast autoregressive image generation by multi-scale local speculative decoding."""


app.command("generate", epilog=generate.EXAMPLES, cls=Respelled)(generate.generate)
app.command("batch", epilog=batch.EXAMPLES)(batch.batch)
app.command("evaluate", epilog=evaluate.EXAMPLES, cls=Respelled)(evaluate.evaluate)
app.command("serve", epilog=serve.EXAMPLES)(serve.serve)
app.command("info", epilog=info.EXAMPLES)(info.info)
app.command("calibrate", epilog=calibrate.EXAMPLES, cls=Respelled)(calibrate.calibrate)
app.command("decoders", epilog=decoders.EXAMPLES)(decoders.decoders)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command("diagnose", epilog=diagnose.EXAMPLES)(diagnose.diagnose)
app.add_typer(bench.app, name="bench")
app.add_typer(convert.app, name="convert")
app.add_typer(train.app, name="train")
