"""The table of speeds on a CPU, at the least sizes: what stands in it, not how fast anything is."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mulosd.measure.ceilings import Ceilings
from mulosd.measure.rows import read_json

FILE = Path(__file__).parents[2] / "benchmarks" / "cpu_table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cpu_table", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cpu_table"] = module
    spec.loader.exec_module(module)
    return module


def test_the_loop_and_serial_of_each_kind_of_weights(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULOSD_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    table.main(["--part", "loop", "--arch", "tiny", "--grid", "4", "--rounds", "1", "--json", str(tmp_path / "a.json")])
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "a.json").read_text())
    names = ["loop float32", "serial float32", "serial bfloat16", "serial int8"]
    assert [row["name"] for row in report["rows"]] == names
    for row in report["rows"][1:]:
        assert row["ratio"] == report["rows"][0]["seconds"] / row["seconds"] and row["floor_share"] > 0
    exact = report["rows"][1]
    assert (exact["wanted"], exact["met"]) == (">= 1.3x", exact["ratio"] >= 1.3)
    assert Ceilings.from_dict(report["ceilings"][0]).threads == 1
    assert [row.what["part"] for row in read_json(tmp_path / "a.json")] == ["loop"] * 4
    text = capsys.readouterr().out
    assert all(name in text for name in names)


def test_calls_take_turns_and_the_first_of_each_is_left_out(table: ModuleType) -> None:
    seen: list[str] = []
    found = table.in_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 2)
    assert seen == ["a", "b"] * 3
    assert all(len(one.all) == 2 and one.seconds == min(one.all) for one in found.values())
