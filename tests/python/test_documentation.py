"""The Python of the README and of the docs runs as it stands, their commands exist, and the README stays a door."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import mulosd
from mulosd.cli import app
from mulosd.cli.options import read_decoders
from mulosd.engine.family import Family
from mulosd.measure.row_engines import split

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """The Python of a page, one text a block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python-api.md"])
def test_the_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stored: list[Any] = []
    # The one thing that an example must not do here: change the bundled family.
    monkeypatch.setattr("mulosd.engine.family.store_calibration", lambda *args: stored.append(args))
    names: dict[str, Any] = {"mulosd": mulosd, "prompts": "a cat on a blue background"}
    found = blocks(page)
    assert found
    for block in found:
        exec(compile(block.replace("held_out_prompts(engine, 32", "held_out_prompts(engine, 2"), page, "exec"), names)
    assert isinstance(names["engine"].family, Family)
    assert bool(stored) == ("store_calibration(" in "".join(found))


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def commands(page: str) -> list[list[str]]:
    """The words of every `mulosd …` in the blocks of a page."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    blocks = [block for language, block in found if language in ("", "bash", "console")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [re.search(r"(?:^|\$ |; |&& )\s*mulosd (.*)", line) for line in lines]
    return [shlex.split(call[1], comments=True) for call in calls if call is not None]


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_exist(page: str) -> None:
    for words in commands(page):
        command, rest = get_command(app), words
        while hasattr(command, "resolve_command"):
            _, command, rest = command.resolve_command(command.context_class(command), rest)
        told = command.make_context("mulosd", list(rest)).params  # an option that there is not is a usage error
        decoder = told.get("decoder") or []
        texts = [decoder] if isinstance(decoder, str) else list(decoder)
        texts = [text.replace("$V", "verify_dtype=bfloat16") for text in texts]
        if words[:2] == ["bench", "decode"]:
            texts = [split(part)[0] for text in texts for part in text.split(",")]
        assert len(read_decoders(texts)) >= len(texts), words


def test_the_readme_is_a_door() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120
