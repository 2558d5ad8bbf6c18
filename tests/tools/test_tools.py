"""The scripts in tools/ run, and one request stays within a number of files that a reader can hold."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import load

# Files that one request may pass through; wanted are 25 and 30.
MOST_FILES = {"serial": 31, "mulo": 41}


@pytest.fixture(scope="module")
def tool() -> Any:
    return load("files_of_a_request")


@pytest.mark.parametrize("number", [0, 1])
def test_a_request_passes_few_files(tool: Any, number: int) -> None:
    text = tool.DECODERS[number]
    passed = tool.trace_request(text)
    files, lines, run = passed.totals()
    assert files <= MOST_FILES[text.partition(":")[0]], "\n".join(tool.listing(passed))
    assert {"mulosd.engine.engine", "mulosd.engine.scheduler", "mulosd.engine.sampling"} <= set(passed.files)
    assert ("mulosd.engine.decoding.mulo" in passed.files) == (number == 1)
    assert not any(module.startswith(("mulosd.train", "mulosd.measure", "mulosd.cli")) for module in passed.files)
    assert 0 < run < lines


def test_tracing_counts_lines_that_run_and_generated_methods(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "__init__": "",
        "record": "from dataclasses import dataclass\n\n\n@dataclass\nclass Record:\n    x: int\n",
        "plain": "from .record import Record\n\n\ndef run(way):\n    if way:\n        return Record(1)\n    return 0\n",
    }.items():
        (tmp_path / "toybox").mkdir(exist_ok=True)
        (tmp_path / "toybox" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    plain = importlib.import_module("toybox.plain")
    before = sys.gettrace()
    assert tool.trace(lambda: plain.run(False), "toybox").run == {"toybox.plain": {5, 7}}
    passed = tool.trace(lambda: plain.run(True), "toybox")
    assert passed.run == {"toybox.plain": {5, 6}, "toybox.record": set()}
    assert passed.totals() == (2, 7 + 6, 2)
    assert tool.trace(lambda: plain.run(True), "toy").files == {}
    assert sys.gettrace() is before


def test_the_table(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(["--decoder", "serial", "--list"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["decoder", "files", "lines", "of", "them", "run"]
    assert int(shown[1].split()[1]) == len(shown) - 4


def test_lines_by_folder() -> None:
    files = [("engine/a.py", b"1\n2\n"), ("engine/models/b.py", b"1\n"), ("python/mulosd/measure/speed/c.py", b"1\n2")]
    assert load("lines").count([*files, ("setup.py", b"1\n"), ("tests/engine/golden/d.py", b"1\n")]) == {
        "engine": 2, "engine/models": 1, "python/mulosd/measure/speed": 2, ".": 1, "tests/engine": 1,
    }  # fmt: skip
