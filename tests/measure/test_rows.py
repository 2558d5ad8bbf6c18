"""Rows: every report that is kept reads and writes as itself, figures with their intervals, one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mulosd.measure.rows import Figure, Row, read_json, rows_of, write_csv
from mulosd.measure.table import Column, figure, markdown, named, table, total

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ROW = {
    "decoder": "mulo",
    "spec": "mulo:tau=0.1",
    "settings": {"tau": 0.1, "scale": 2},
    "seconds_per_image": {"median": 0.5, "p20": 0.4, "p80": 0.7, "runs": 5},
    "forwards": {"draft": 8.0, "verify": 2.0},
    "nll": 1.5,
    "nll_ci95": [1.0, 2.0],
    "accuracy": {"value": 0.75, "ci95": [0.5, 1.0], "objects": 8, "scene": {"value": 0.25, "ci95": [0.0, 0.5]}},
    "kid": {"value": 3.0, "std": 1.0},
    "rejection": None,
    "paired": {"serial": {"nll": {"value": -0.5, "ci95": [-1.0, 0.0]}}},
}
REPORT = {"family": "fake", "device": "a device", "versions": {"torch": "2"}, "commit": "abc", "rows": [ROW]}


def test_figures_are_read_with_their_intervals() -> None:
    (row,) = rows_of(REPORT)
    assert row.figure("seconds_per_image") == Figure(0.5, 0.4, 0.7, "s")
    assert row.figure("nll") == Figure(1.5, 1.0, 2.0, "nats/token")
    assert row.figure("accuracy.scene") == Figure(0.25, 0.0, 0.5)
    assert row.figure("paired.serial.nll") == Figure(-0.5, -1.0, 0.0, "nats/token")
    assert row.total("forwards") == Figure(10.0, 10.0, 10.0)
    kid = row.figure("kid")
    assert kid is not None and (kid.low, kid.high) == pytest.approx((3 - 1.96, 3 + 1.96), abs=1e-3)
    for absent in ("rejection", "nothing", "accuracy.nothing", "nll.deeper", "forwards", "paired"):
        assert row.figure(absent) is None
    assert (row.family, row.machine.device, row.machine.commit) == ("fake", "a device", "abc")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_kept_reports_read_and_write_as_themselves(path: Path) -> None:
    report = json.loads(path.read_text())
    if "rows" not in report:
        with pytest.raises(ValueError, match="holds no rows"):
            read_json(path)
        return
    rows = read_json(path)
    assert [row.to_dict() for row in rows] == report["rows"]
    assert all(dict(row.figures()) for row in rows)


def test_rows_are_written_as_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [*rows_of(REPORT), Row({"decoder": "serial"}, {"nll": 2.0})])
    with (tmp_path / "rows.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["decoder"], first["family"], first["versions"], first["commit"]) == ("mulo", "fake", "torch 2", "abc")
    assert [first[k] for k in ("seconds_per_image [s]", "seconds_per_image low", "seconds_per_image high")] == [
        "0.5", "0.4", "0.7",
    ]  # fmt: skip
    assert first["accuracy.scene"] == "0.25" and first["forwards.draft"] == "8.0"
    assert second["nll [nats/token]"] == "2.0" and second["kid"] == second["nll low"] == ""


def test_one_table_on_the_screen_and_as_markdown() -> None:
    rows = rows_of({**REPORT, "rows": [ROW, {**ROW, "nll": None}]})
    columns = [
        named(["first", "[second]"], rows),
        figure("right", "accuracy", "{value:.0f} ({low:.0f}-{high:.0f})", 100),
        total("fwd", "forwards"),
        Column("NLL", lambda row: None if row.figure("nll") is None else "yes"),
    ]
    assert markdown(rows, columns).splitlines() == [
        "| decoder | right | fwd | NLL |",
        "| --- | ---: | ---: | ---: |",
        "| first | 75 (50-100) | 10 | yes |",
        "| [second] | 75 (50-100) | 10 | - |",
    ]
    made = table(rows, columns, title="a [title]")
    assert made.row_count == 2 and [str(column.header) for column in made.columns] == ["decoder", "right", "fwd", "NLL"]
