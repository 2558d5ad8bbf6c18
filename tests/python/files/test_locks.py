"""Two runs into one place: the second is refused at once, and no lock outlives its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from mulosd.engine.family import Family, store_calibration
from mulosd.engine.family_config import Calibration, change
from mulosd.engine.lock import lock_file, locked
from mulosd.train.checkpoint import alone

HOLD = """
import sys, time
from pathlib import Path
from mulosd.engine.lock import locked
with locked(Path(sys.argv[1]), "a test of", name=sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def another_process_holds(path: Path, name: str = "") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), name], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_second_is_refused_at_once_and_told_who_is_first(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as process:
        with (
            pytest.raises(ValueError, match=rf"a run into .* under way in another process \(process {process.pid}\)"),
            locked(tmp_path, "a run into"),
        ):
            pass
        with locked(tmp_path, "a run into", name="other"):
            pass
    with locked(tmp_path, "a run into"):
        assert lock_file(tmp_path).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_stale_lock(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert lock_file(tmp_path).exists(), "the file stays, the lock does not"
        with locked(tmp_path, "a run into"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_has_the_lock_of_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "target.json").touch()
    (tmp_path / "link.json").symlink_to("target.json")
    with (
        locked(tmp_path / "link.json", "one"),
        pytest.raises(ValueError, match="under way"),
        locked(tmp_path / "target.json", "two"),
    ):
        pass


def test_no_two_threads_hold_one_lock(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(25):
            with locked(tmp_path, "counting in", wait=True):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_concurrent_settings_of_a_family_are_not_lost(family: Path, tmp_path: Path) -> None:
    folder = Family.load(family).save(tmp_path / "family")
    before = set(json.loads((folder / "family.json").read_text())["calibration"])
    names = [f"{scale}-pixel" for scale in range(2, 26)]

    def store(name: str) -> None:
        found = Calibration(int(name.split("-")[0]), "pixel", pool=1, radius=0, tau=0.1)
        store_calibration(folder, found)

    threads = [threading.Thread(target=store, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads((folder / "family.json").read_text())["calibration"]) == before | set(names)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_change_that_fails_gives_the_lock_back(family: Path, tmp_path: Path) -> None:
    folder = Family.load(family).save(tmp_path / "family")

    def fail(values: object) -> dict[str, object]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        change(folder, fail)
    change(folder, lambda values: {"name": "changed"})
    assert Family.load(folder, weights=False).name == "changed"


def test_two_evaluations_into_one_report(run: Callable[..., Result], family: Path) -> None:
    Path("report").mkdir()
    Path("p.txt").write_text("apple")
    arguments = ("evaluate", "--family", family, "--prompts", "p.txt", "--decoder", "serial", "--report", "report")
    with another_process_holds(Path("report")):
        result = run(*arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert "an evaluation into --report report is under way in another process" in result.stderr
    assert list(Path("report").glob("*.jsonl")) == []


def test_two_calibrations_of_one_family(run: Callable[..., Result], family: Path, tmp_path: Path) -> None:
    folder = Family.load(family).save(tmp_path / "copy")
    with another_process_holds(folder, "calibrate"):
        result = run("calibrate", "--family", folder, "--prompts", "1")
        assert result.exit_code == 2 and f"a calibration of {folder} is under way" in result.stderr


def test_two_generations_into_one_statistics_file(run: Callable[..., Result], family: Path) -> None:
    with another_process_holds(Path("s.json")):
        result = run("generate", "apple", "--family", family, "--output", "out.png", "--stats", "s.json")
        assert result.exit_code == 2 and "writing of --stats s.json is under way" in result.stderr
        assert not Path("out.png").exists()
    assert run("generate", "apple", "--family", family, "--output", "o.png", "--stats", "s.json").exit_code == 0
    assert sorted(p.name for p in Path().iterdir()) == ["o.png", "s.json"]


def test_two_trainings_of_one_stage_into_one_run(tmp_path: Path) -> None:
    with another_process_holds(tmp_path, "tokenizer"):
        with pytest.raises(ValueError, match="a training of tokenizer in"), alone(tmp_path, "tokenizer"):
            pass
        with alone(tmp_path, "upsampler") as other:
            assert other == tmp_path
    with pytest.raises(RuntimeError, match="early"), alone(tmp_path / "new", "tokenizer"):
        raise RuntimeError("early")
    assert not (tmp_path / "new").exists(), "a folder that was made for nothing goes again"
