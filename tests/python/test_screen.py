"""Nothing that comes from outside reaches the terminal as a control character, or breaks a line that is read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from typer.testing import Result

from mulosd.screen import LINES, REORDERING, Screen, printable

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe\r\x08"


def controls(text: str, keep: str = "\n\t") -> set[str]:
    return {c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160 or c in REORDERING | LINES) and c not in keep}


@given(st.text(st.characters()))
def test_printable_text_has_no_controls_and_is_itself_where_it_has_none(text: str) -> None:
    assert not controls(printable(text))
    printable(text).encode()
    assert not controls(printable(text, keep=""), keep="")
    if text.isprintable():
        assert printable(text) == text


@pytest.mark.parametrize("text", ["猫とバイオリン", "naïve café", "👩\u200d🚀", "מתמטיקה", "a\u00a0b"])
def test_texts_of_all_scripts_stay(text: str) -> None:
    assert printable(text) == text


def test_a_console_shows_escapes_written_out_in_texts_tables_and_titles() -> None:
    screen = io.StringIO()
    console = Screen(file=screen, force_terminal=True, width=200)
    table = Table("column", title=f"family {HOSTILE}")
    table.add_row(HOSTILE)
    console.print(f"[bold]{HOSTILE}[/]", highlight=False)
    console.print(HOSTILE, markup=False, highlight=False)
    console.print(table)
    shown = screen.getvalue()
    assert shown.count(r"\x1b]0;title\x07") == 4
    assert "\x1b]" not in shown and "\x07" not in shown and "\x9b" not in shown and "\u202e" not in shown
    assert "\x1b[1m" in shown, "styles of its own stay"


def test_escapes_in_paths_prompts_and_families_reach_neither_terminal_nor_statistics(
    run: Callable[..., Result], family: Path
) -> None:
    hostile = HOSTILE.replace("/", "")
    for arguments in (
        ("generate", "apple", "--family", hostile),
        ("generate", f"apple {hostile}", "--family", family, "--decoder", hostile),
        ("generate", "apple", "--family", family, "--output", f"{hostile}.gif"),
        ("generate", "--prompts", hostile, "--family", family),
        ("info", hostile),
        ("train", "tokenizer", "--config", hostile, "--run", "run"),
        ("convert", "llamagen", "--target", hostile, "--vq", hostile, "--output", "new"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and not controls(result.output), arguments
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    result = run(
        "generate", f"apple{hostile}", "--family", family, "--output", f"a\n{hostile}.png", "--stats", "s.json"
    )
    assert result.exit_code == 0 and not controls(result.output)
    (entry,) = json.loads(Path("s.json").read_text())["images"]
    assert entry["prompt"] == f"apple{hostile}" and Path(entry["file"]).is_file()
    assert not controls(Path("s.json").read_text())
