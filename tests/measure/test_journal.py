"""Interrupted measurements go on, and others' are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mulosd.engine.decoding import DraftOnly, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.measure.decode import measure
from mulosd.measure.journal import Journal


def test_records_survive_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first = Journal(path, {"seed": 1, "sizes": (1, 2)})
    first.add((0, 0), {"seconds": 0.5})
    first.add((0, 1), {"seconds": 0.25})
    with path.open("a") as file:
        file.write('{"key": [1, 0], "rec')
    second = Journal(path, {"seed": 1, "sizes": (1, 2)})
    assert second.records == {(0, 0): {"seconds": 0.5}, (0, 1): {"seconds": 0.25}}
    second.add((1, 0), {"seconds": 2.0})
    assert Journal(path, {"seed": 1, "sizes": [1, 2]}).records == second.records


def test_another_measurement_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    Journal(path, {"seed": 1, "family": "a"}).add((0,), {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="differs in seed"):
        Journal(path, {"seed": 2, "family": "a"})
    assert path.read_bytes() == before
    path.write_text("no journal\n")
    with pytest.raises(ValueError, match="not a file of runs"):
        Journal(path, {})
    assert path.read_text() == "no journal\n"


def test_an_interrupted_benchmark_gives_the_report_of_an_uninterrupted_one(tmp_path: Path) -> None:
    engine = Engine(random_family())
    prompts = ["red apple", "blue pear", "apple"]
    decoders = [Serial().resolve(engine.family), DraftOnly(scale=2).resolve(engine.family)]
    path, made = tmp_path / "runs.jsonl", 0

    def interrupt(what: str, done: int, total: int) -> None:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"runs": path, "timing_images": 1, "batch_for_quality": 2}
    with pytest.raises(KeyboardInterrupt):
        measure(engine, prompts, decoders, **how, progress=interrupt)
    assert len(path.read_text().splitlines()) == 1 + 3
    kept = path.read_text()
    report = measure(engine, prompts, decoders, **how)
    assert path.read_text().startswith(kept)
    whole = measure(engine, prompts, decoders, timing_images=1, batch_for_quality=2)
    for row, other in zip(report["rows"], whole["rows"], strict=True):
        for key in ("spec", "forwards", "nll", "nll_ci95", "paired"):
            assert row[key] == other[key]
        assert row["seconds_per_image"]["runs"] == 5
    assert measure(engine, prompts, decoders, **how)["rows"] == report["rows"], "nothing is left to run"
