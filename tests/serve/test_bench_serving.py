"""`mulosd bench serve`: its counts are the server's, its loops ask as they say."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mulosd.cli import app
from mulosd.measure.rows import rows_of
from mulosd.measure.speed.serving import Answer, Client, Load, bench_serving, closed, describe, gaps, opened, prompts_of

JOBS = [("apple", i) for i in range(12)]


class Counted(Client):
    """Answers itself, once it has been asked `wanted` times at a time."""

    def __init__(self, wanted: int) -> None:
        super().__init__("http://nowhere")
        self.wanted, self.now, self.most, self.changed = wanted, 0, 0, threading.Condition()

    def draw(self, prompt: str, seed: int, due: float | None = None) -> Answer:
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            there = self.changed.wait_for(lambda: self.most >= self.wanted, 30)
            self.now -= 1
        return Answer("finished" if there else "failed", 0.0, 1.0)


@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_a_closed_loop_has_so_many_under_way(concurrency: int) -> None:
    client = Counted(min(concurrency, 12))
    assert [answer.outcome for answer in closed(client, JOBS, concurrency)] == ["finished"] * 12
    assert client.most == min(concurrency, 12)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    client = Counted(12)
    assert [answer.outcome for answer in opened(client, JOBS, rate=1000.0)] == ["finished"] * 12


def test_times_of_an_open_loop_are_poisson() -> None:
    found = [gap for gap, _ in zip(gaps(4.0, seed=1), range(20_000), strict=False)]
    mean = sum(found) / len(found)
    assert mean == pytest.approx(0.25, rel=0.03)
    assert sum((gap - mean) ** 2 for gap in found) / len(found) == pytest.approx(0.25**2, rel=0.1)
    assert found[:5] == [gap for gap, _ in zip(gaps(4.0, seed=1), range(5), strict=False)]


def test_the_figures_of_a_load() -> None:
    answers = [
        *(Answer("finished", 10.0, 10.0 + s, preview=s / 4, queue=s / 2) for s in (1.0, 2.0, 3.0)),
        Answer("refused", 10.0, 10.1, error="full"),
        Answer("failed", 10.0, 19.0, preview=0.1, error="broken"),
    ]
    row = describe(Load(rate=2.0), answers, 10.0, deadline=2.0)
    assert (row["sent"], row["finished"], row["refused"], row["failed"]) == (5, 3, 1, 1)
    assert (row["images_per_second"], row["goodput"], row["in_time"]) == (0.3, 0.2, 0.4)
    assert row["latency"]["p50"] == 2.0 and row["first_preview"]["p50"] == 0.5 and row["queue"]["p50"] == 1.0
    assert row["errors"] == ["broken", "full"] and row["load"] == "2 a second"
    assert "latency" not in describe(Load(concurrency=1), [answers[3]], 1.0, 2.0)


def test_a_server_under_both_loads(start: Any, told: Any, tmp_path: Path) -> None:
    live = start(told(max_running=2), max_running=2, max_waiting=0)
    file = tmp_path / "serve.json"
    loads = ["--concurrency", "1,6", "--request-rate", "200", "--requests", "12"]
    options = ["--partial-images", "1", "--deadline", "30", "--json", str(file)]
    result = CliRunner().invoke(app, ["bench", "serve", "--url", live.url, *loads, *options])
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    rows = {row.what["load"]: row for row in rows_of(report)}
    assert list(rows) == ["1 at a time", "6 at a time", "200 a second"]
    finished = {name: int(row.values["finished"]) for name, row in rows.items()}
    assert all(row.values["sent"] == 12 for row in rows.values()) and finished["1 at a time"] == 12
    outcomes = live.outcomes()
    assert outcomes["finished"] == sum(finished.values()) + 1, "and the one before, which is not counted"
    assert outcomes["refused"] == sum(int(row.values["refused"]) for row in rows.values()) > 0
    alone = rows["1 at a time"].values
    assert 0 < alone["first_preview"]["p50"] < alone["latency"]["p50"] and alone["in_time"] == 1.0
    assert alone["images_per_second"] == pytest.approx(12 / alone["seconds"])
    assert "requests over HTTP" in result.output


def test_what_cannot_be_measured_is_told(start: Any) -> None:
    live = start()

    def fails(*options: str) -> str:
        result = CliRunner().invoke(app, ["bench", "serve", *options])
        assert result.exit_code == 2 and result.stderr.startswith("error: ")
        return result.stderr

    assert "does not answer" in fails("--url", "http://127.0.0.1:9")
    assert "such as http://" in fails("--url", "nowhere")
    assert "this server has random" in fails("--url", live.url, "--model", "nope")
    assert "did not draw the first image" in fails("--url", live.url, "--decoder", "nope")
    assert "numbers above 0" in fails("--url", live.url, "--request-rate", "0")
    with pytest.raises(ValueError, match="concurrency"):
        bench_serving(Client(live.url), [Load()], ["apple"])


def test_prompts_are_words_of_the_family() -> None:
    none: dict[str, Any] = {"objects": [], "backgrounds": [], "classes": [], "words": [], "example": "warm-up"}
    scenes = {**none, "objects": ["cat", "car"], "backgrounds": ["blue"]}
    assert set(prompts_of(scenes, 9)) <= {
        "a cat and a car on a blue background",
        "a car and a cat on a blue background",
    }
    assert set(prompts_of({**none, "classes": ["tench, Tinca tinca"]}, 2)) == {"tench"}
    assert prompts_of(none, 2) == ["warm-up", "warm-up"]
    assert prompts_of(scenes, 9) == prompts_of(scenes, 9)
