"""The progress bar of a generation."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mulosd import Progress
from mulosd.cli import console


@pytest.mark.parametrize("terminal", [True, False])
def test_stage_bar(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=terminal, width=100))
    with console.stage_bar() as progress:
        for done in range(3):
            progress(Progress("draft", done, 2))
        progress(Progress("a stage of the future", 1, 1))
    text = screen.getvalue()
    assert ("drafting" in text) == terminal
    assert ("a stage of the future" in text) == terminal
