"""Writers: whole or not at all, whatever ends them, and through links, modes, devices and full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from mulosd.engine.atomic import atomic, partial_folder, remove_abandoned, write_json
from mulosd.engine.weights import new_folder, read_tensors, write_tensors
from mulosd.files.texts import read_json
from mulosd.measure.journal import Journal
from mulosd.train.checkpoint import read, write


def put(path: Path, data: bytes) -> None:
    with atomic(path) as file:
        file.write(data)


def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(Path("other", "target"))
    put(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    write_tensors(link, {"w": torch.ones(3)})
    assert link.is_symlink() and read_tensors(target)[0]["w"].sum() == 3
    dangling = tmp_path / "dangling"
    dangling.symlink_to("made")
    put(dangling, b"x")
    assert dangling.is_symlink() and (tmp_path / "made").read_bytes() == b"x"


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o440])
def test_the_mode_of_an_existing_file_is_kept(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for how in (lambda: put(path, b"x"), lambda: write_tensors(path, {"w": torch.ones(1)})):
        path.chmod(mode)
        how()
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    write_json(Path("/dev/null"), {"a": 1})
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 1})
    assert os.read(reader, 100) == b'{\n "a": 1\n}\n'
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("redirected", [True, False])
def test_dev_stdout_is_standard_output_and_no_file_of_that_name(redirected: bool, tmp_path: Path) -> None:
    code = "from pathlib import Path; from mulosd.engine.atomic import write_json; write_json(Path('/dev/stdout'), [1])"
    out = tmp_path / "out"
    with out.open("wb") as file:
        result = subprocess.run(
            [sys.executable, "-c", code], stdout=file if redirected else subprocess.PIPE, check=True, timeout=60
        )
        kept = os.fstat(file.fileno()).st_ino == out.stat().st_ino
    assert kept and (out.read_bytes() if redirected else result.stdout) == b"[\n 1\n]\n"
    assert list(tmp_path.iterdir()) == [out]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 2,000 bytes: the error of the system is another, its way the same.

    Inside a test alone: what pytest itself writes to must be able to grow.
    """
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "bytes": lambda path: put(path, bytes(9999)),
    "json": lambda path: write_json(path, ["x" * 9999]),
    "weights": lambda path: write_tensors(path, {"w": torch.zeros(9999)}),
    "training checkpoint": lambda path: write({"w": torch.zeros(9999)}, path),
    "image": lambda path: save_noise(path),
}


def save_noise(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    with atomic(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_gives_one_line_with_the_files_name_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match="File too large") as raised:
        WRITERS[kind](path)
    assert raised.value.errno == errno.EFBIG and raised.value.filename == str(path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def fill(journal: Journal) -> None:
    for n in range(99):
        journal.add((n,), {"seconds": "x" * 100})


def test_a_journal_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    path, about = tmp_path / "runs.jsonl", {"seed": 1}
    journal = Journal(path, about)
    with full_disk(), pytest.raises(OSError, match="File too large") as raised:
        fill(journal)
    assert raised.value.filename == str(path)
    journal.add((777,), {"seconds": 1})
    found = Journal(path, about).records
    assert found[777,] == {"seconds": 1} and 10 < len(found) < 30


def test_a_journal_with_a_cut_line_in_its_middle_is_read_without_that_line(tmp_path: Path) -> None:
    path, about = tmp_path / "runs.jsonl", {"seed": 1}
    journal = Journal(path, about)
    journal.add((0,), {"a": 0})
    with path.open("ab") as file:
        file.write(b'{"key":[1],"rec{"key":[2],"record":{"a":2}}\n{"key":[3],"rec')
    journal.add((4,), {"a": 4})
    assert Journal(path, about).records == {(0,): {"a": 0}, (4,): {"a": 4}}


def test_unfinished_files_and_folders_of_dead_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = [tmp_path / ".image.png.0123abcd.part", tmp_path / ".weights.89abcdef.part"]
    others = [tmp_path / name for name in (".notes.part", "image.0123abcd.part", ".x.0123ABCD.part", ".image.png")]
    held = tmp_path / ".held.00000000.part"
    with partial_folder(tmp_path / "folder") as folder, held.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in (dead[0], *others):
            path.touch()
        dead[1].mkdir()
        (dead[1] / "half").touch()
        assert sorted(remove_abandoned(tmp_path)) == sorted(dead)
        assert sorted(tmp_path.iterdir()) == sorted([*others, held, folder])
    assert remove_abandoned(tmp_path) == [held]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with new_folder(tmp_path / "family") as folder:
            (folder / "a").touch()
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "family") as folder:
        (folder / "a").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["family", "a"]
    assert stat.S_IMODE((tmp_path / "family").stat().st_mode) == 0o755


def test_a_folder_that_another_process_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def make() -> None:
        with new_folder(tmp_path / "family") as folder:
            (folder / "a").touch()
            (tmp_path / "family").mkdir()
            (tmp_path / "family" / "theirs").touch()

    with pytest.raises(ValueError, match="was made by another process meanwhile"):
        make()
    assert [p.name for p in tmp_path.rglob("*")] == ["family", "theirs"]


@pytest.mark.parametrize("kind", WRITERS)
def test_what_cannot_be_written_is_named_and_not_its_unfinished_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as raised:
        WRITERS[kind](path)
    assert raised.value.filename == str(path)


KILLED = """
import sys
from pathlib import Path
import torch
from mulosd.engine.atomic import write_json
from mulosd.engine.weights import new_folder, write_tensors
from mulosd.measure.journal import Journal
from mulosd.train.checkpoint import write
folder = Path(sys.argv[1])
journal = Journal(folder / "runs.jsonl", {"seed": 1})
print("begun", flush=True)
for n in range(10**9):
    write_json(folder / "values.json", {"n": n, "same": [n] * 3000})
    write({"module": {}, "ema": {}, "optimizers": [], "step": n, "x": torch.full((30000,), n)}, folder / "train.pt")
    write_tensors(folder / "w.safetensors", {"w": torch.full((30000,), n)})
    journal.add((n,), {"seconds": n})
    with new_folder(folder / f"family-{n}") as new:
        write_json(new / "a.json", n)
        write_json(new / "b.json", n)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_whole_files_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    rng, left = random.Random(7), 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.05, 1.0))
        process.kill()
        process.wait()
        for folder in tmp_path.glob("family-*"):
            assert sorted(p.name for p in folder.iterdir()) == ["a.json", "b.json"]
            (folder / "a.json").unlink(), (folder / "b.json").unlink(), folder.rmdir()
        if (tmp_path / "values.json").exists():
            values = read_json(tmp_path / "values.json")
            assert values["same"] == [values["n"]] * 3000
        if (tmp_path / "train.pt").exists():
            state = read(tmp_path / "train.pt")
            assert (state["x"] == state["step"]).all()
        if (tmp_path / "w.safetensors").exists():
            w = read_tensors(tmp_path / "w.safetensors")[0]["w"]
            assert (w == w[0]).all()
        records = Journal(tmp_path / "runs.jsonl", {"seed": 1}).records
        assert all(record == {"seconds": n} for (n,), record in records.items())
        left += len(list(tmp_path.glob(".*.part")))
    assert left, "no kill came in the middle of a write: the test shows nothing"
    remove_abandoned(tmp_path)
    assert list(tmp_path.glob(".*")) == []


def test_statistics_go_to_standard_output_and_to_nowhere(run: Callable[..., Result], family: Path) -> None:
    result = run("generate", "apple", "--family", family, "--output", "a.png", "--stats", "/dev/null")
    assert result.exit_code == 0, result.output
    assert [p.name for p in Path().iterdir()] == ["a.png"]
