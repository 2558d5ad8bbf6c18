"""The frontier by hand and against its definition, and its picture."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mulosd.measure.plots import frontier, plot_frontier, series, style
from mulosd.measure.rows import Row, rows_of
from mulosd.measure.table import labels

pytest.importorskip("matplotlib")


def row(spec: str, seconds: float, accuracy: float, **settings: Any) -> dict[str, Any]:
    return {
        "decoder": spec.split(":")[0],
        "spec": spec,
        "settings": settings,
        "seconds_per_image": {"median": seconds, "p20": 0.9 * seconds, "p80": 1.2 * seconds, "runs": 5},
        "forwards": {"some": 10 * seconds, "prefill": 1},
        "nll": 1 - accuracy,
        "nll_ci95": [0.9 - accuracy, 1.1 - accuracy],
        "accuracy": {"value": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.1]},
        "kid": None,
    }


def typed(*rows: dict[str, Any]) -> list[Row]:
    return rows_of({"rows": rows})


def report() -> dict[str, Any]:
    rows = [
        row("serial", 8.0, 0.9),
        row("zipar:window=2", 2.0, 0.7, window=2),
        row("zipar:window=4", 3.0, 0.8, window=4),
        row("mulo:scale=2:tau=0.1:window=2", 1.0, 0.75, scale=2, tau=0.1, window=2),
        row("mulo:scale=2:tau=0.2:window=2", 1.01, 0.76, scale=2, tau=0.2, window=2),
    ]
    return {"family": "none", "prompts": 3, "device": "a device", "rows": rows}


def test_the_frontier_is_what_nothing_beats() -> None:
    assert frontier([1, 2, 3, 2.5], [5, 6, 7, 6]) == [0, 1, 2]
    assert frontier([1, 1], [3, 4]) == [1]
    rng = random.Random(0)
    for _ in range(50):
        costs = [rng.randrange(6) for _ in range(8)]
        gains = [rng.randrange(6) for _ in range(8)]
        found = frontier(costs, gains)
        ends = [(costs[i], gains[i]) for i in found]
        assert ends == sorted(ends)
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(ends))
        for i in range(8):
            beaten = any(
                costs[j] <= costs[i] and gains[j] >= gains[i] and (costs[j], gains[j]) != (costs[i], gains[i])
                for j in range(8)
            )
            assert ((costs[i], gains[i]) in ends) == (not beaten)


def test_a_sweep_is_one_series_and_labels_tell_rows_apart() -> None:
    assert {name: len(rows) for name, rows in series(rows_of(report())).items()} == {
        "serial": 1,
        "zipar": 2,
        "mulo window=2": 2,
    }
    both = report()
    both["rows"].append(row("mulo:scale=4:tau=0.1:window=2", 0.5, 0.7, scale=4, tau=0.1, window=2))
    names = list(series(rows_of(both)))
    assert names == ["serial", "zipar", "mulo scale=2 window=2", "mulo scale=4 window=2"], "two ratios are two series"
    assert labels(rows_of(report()))[3:] == ["mulo τ0.1 w2", "mulo τ0.2 w2"]
    mixed = typed(row("mulo", 1, 1, scale=2), row("mulo", 1, 1, scale=4))
    assert labels(mixed) == ["mulo r2", "mulo r4"]
    assert labels(typed(row("mulo", 1, 1, draft_window=None, tau=0.0))) == ["mulo τ0"]


def test_the_picture_has_a_column_for_each_measure_that_there_is(tmp_path: Path) -> None:
    two, three = report(), report()
    for one in three["rows"]:
        one["kid"] = {"value": 3.0, "std": 1.0}
    for name, what in (("two.png", two), ("three.png", three)):
        plot_frontier(what, tmp_path / name)
    narrow, wide = (Image.open(tmp_path / name) for name in ("two.png", "three.png"))
    assert wide.width > 1.3 * narrow.width
    assert (np.asarray(narrow.convert("RGB")) == (0x00, 0x72, 0xB2)).all(axis=-1).any(), "the first series is drawn"
    plot_frontier(two, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().lstrip().startswith("<?xml")
    with pytest.raises(ValueError, match=r"\.svg"):
        plot_frontier(two, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="no rows"):
        plot_frontier({**two, "rows": []}, tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_series_look_different() -> None:
    assert len({style(n) for n in range(40)}) == 40
