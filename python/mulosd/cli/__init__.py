"""The command line. Commands import what they need when they run, so that `mulosd --help` is quick."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from .app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run `mulosd`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no letter of a prompt stops a command
    app()
