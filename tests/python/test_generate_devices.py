"""`mulosd generate --devices`: a list shared among processes is drawn as by one, whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from mulosd.cli import workers
from mulosd.cli.jobs import Job
from mulosd.cli.options import read_devices
from mulosd.cli.workers import draw_on, portable
from mulosd.engine.decoding import parse
from mulosd.engine.family import Family
from mulosd.engine.sampling import SamplingParams

Run = Callable[..., Result]
Fails = Callable[..., str]


def jobs_of(family: Path, count: int, decoder: str = "serial") -> list[Job]:
    resolved = parse(decoder).resolve(Family.load(family, weights=False))
    return [Job("apple", seed, resolved, Path(f"{seed}.png"), {}) for seed in range(count)]


def test_images_are_those_of_one_process_and_what_is_there_is_left(run: Run, family: Path) -> None:
    call = ("generate", "apple", "pear", "-n", 3, "--family", family, "--sampling", "top_k=9")
    assert run(*call, "--output", "one").exit_code == 0
    assert (
        run("generate", "apple", "pear", "--family", family, "--sampling", "top_k=9", "--output", "two").exit_code == 0
    )
    kept = {path: path.stat().st_mtime_ns for path in Path("two").iterdir()}
    result = run(*call, "--output", "two", "--devices", "cpu,cpu", "--stats", "s.json", "--sheet", "s.png")
    assert result.exit_code == 0, result.output
    assert "2 of 6 there already" in result.stdout and "6 of 6" in result.stdout and Path("s.png").is_file()
    files = [{path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 6
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    images = json.loads(Path("s.json").read_text())["images"]
    assert len(images) == 6 and sum("seconds" in image for image in images) == 4


def test_the_images_of_a_worker_that_dies_are_drawn_by_another(
    family: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    monkeypatch.setattr(workers, "warn", told.append)
    jobs, done, killed = jobs_of(family, 24), [], None
    for job, update in draw_on(["cpu", "cpu"], {"family": family}, jobs, SamplingParams()):
        assert update.image is not None and update.stats is not None
        done.append(job.seed)
        if killed is None:
            killed = next(child for child in active_children() if child.name == "mulosd cpu")
            os.kill(killed.pid or 0, signal.SIGKILL)
    assert sorted(done) == list(range(24))
    assert len(told) == 1 and "worker of cpu" in told[0] and "signal 9" in told[0]
    assert not active_children()


def test_ctrl_c_gives_what_is_finished_and_ends_the_workers(family: Path) -> None:
    done: list[int] = []

    def interrupted() -> None:
        for job, _ in draw_on(["cpu"], {"family": family}, jobs_of(family, 4000), SamplingParams()):
            done.append(job.seed)
            if len(done) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    # A shell that runs the tests in the background lets them ignore Ctrl-C.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, former)
    assert 1 <= len(done) < 4000 and len(set(done)) == len(done)
    assert not active_children()


def test_a_failing_image_and_a_worker_that_cannot_load_are_told(family: Path) -> None:
    bad = replace(jobs_of(family, 1)[0], prompt="zebra")
    with pytest.raises(ValueError, match="zebra"):
        list(draw_on(["cpu"], {"family": family}, [bad], SamplingParams()))
    with pytest.raises(ValueError, match="no family"):
        list(draw_on(["cpu"], {"family": "nowhere"}, [bad], SamplingParams()))  # nobody is left to draw
    assert not active_children()


def test_errors_travel_between_processes() -> None:
    class Local(Exception):
        pass

    kept = OSError(28, "No space left on device")
    assert portable(kept) is kept
    assert str(portable(Local("what"))) == "Local: what"
    assert portable(torch.OutOfMemoryError("full")).args == ("full",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--devices", "0,1"), ["cuda:0", "no CUDA device"]),
        (("--devices", "cpu,"), ["--devices cpu,", "''"]),
        (("--devices", "cpu,cpu", "--device", "cuda"), ["one of the two"]),
    ],
)
def test_devices_that_cannot_be_are_refused(
    fails: Fails, family: Path, options: tuple[str, ...], words: list[str]
) -> None:
    told = fails("generate", "apple", "--family", family, *options)
    assert all(word in told for word in words)


def test_numbers_are_gpus_and_each_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert read_devices("cpu", "1, cuda:0,cpu,cpu") == ["cuda:1", "cuda:0", "cpu", "cpu"]
    for devices, word in (("0,cuda:0", "twice"), ("cuda", "number"), ("0,2", "2 CUDA device"), ("tpu", "tpu")):
        with pytest.raises(ValueError, match=word):
            read_devices("cpu", devices)
