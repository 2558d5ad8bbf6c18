"""The command line. Commands import what they need when they run, so that `mulosd --help` is quick."""

from __future__ import annotations

from .app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run `mulosd`."""
    app()
