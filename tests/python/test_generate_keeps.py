"""`mulosd generate`: no finished image is ever lost, and what is there is not drawn again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from mulosd.cli.image_files import read_settings
from mulosd.engine.atomic import atomic

Run = Callable[..., Result]
Fails = Callable[..., str]


def started(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mulosd", "generate", *map(str, arguments)]
    # A shell that runs the tests in the background lets its children ignore Ctrl-C.
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command,
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def whole(folder: Path | str) -> list[str]:
    """Names of the images of a folder, every one of which can be read and remembers its settings."""
    paths = sorted(Path(folder).iterdir())
    assert all(read_settings(path) is not None for path in paths)
    return [path.name for path in paths]


def entries(path: Path | str) -> list[str]:
    return [Path(image["file"]).name for image in json.loads(Path(path).read_text())["images"]]


def test_ctrl_c_keeps_what_is_finished_and_the_same_call_draws_the_rest(run: Run, family: Path, tmp_path: Path) -> None:
    call = ("apple", "--family", family, "--decoder", "serial", "--output", "many", "--stats", "s.json")
    process = started(*call, "-n", 5000, stdout=subprocess.DEVNULL, cwd=tmp_path)
    try:
        limit = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < limit:
            if Path("many").is_dir() and len(list(Path("many").glob("*.png"))) >= 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    names = whole("many")
    assert 3 <= len(names) < 5000
    assert sorted(entries("s.json")) == names
    assert told.count("\n") == 1 and f"{len(names)} of 5000 images are finished and kept" in told
    before = {path: path.stat().st_mtime_ns for path in Path("many").iterdir()}
    again = run("generate", *call, "-n", len(names) + 1)
    assert again.exit_code == 0, again.output
    assert len(whole("many")) == len(entries("s.json")) == len(names) + 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert f"{len(names)} of {len(names) + 1} there already" in again.stdout
    assert all(image["seconds"] for image in json.loads(Path("s.json").read_text())["images"])


def test_a_closed_pipe_costs_lines_but_no_image(run: Run, family: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    call = ("apple", "-n", 4, "--family", family, "--output", "d", "--stats", "s.json")
    process = started(*call, stdout=write, cwd=tmp_path)
    os.close(write)
    _, told = process.communicate(timeout=150)
    assert process.returncode == 2
    assert len(whole("d")) == len(entries("s.json")) == 4
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "Broken pipe" in told and "4 of 4 images are there" in told


def test_output_that_nobody_reads_ends_a_command_without_a_word(run: Run, family: Path, tmp_path: Path) -> None:
    for call in (("info", family), ("info", "--help")):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "mulosd", *map(str, call)], stdout=write, stderr=subprocess.PIPE, timeout=150
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (1, b""), call


def test_a_terminal_without_the_letters_costs_no_image(run: Run, family: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    call = ("apple é", "pear", "--family", family, "--output", "café", "--stats", "s.json")
    process = started(*call, stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
    out, told = process.communicate(timeout=150)
    assert process.returncode == 0, told
    assert len(whole("café")) == len(entries("s.json")) == 2
    assert "2 of 2" in out and "caf\\xe9" in out


def test_a_full_disk_keeps_the_images_before_it(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = Image.Image.save, []

    def full(self: Image.Image, file: object, **options: object) -> None:
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        saved.append(file)
        save(self, file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("generate", "apple", "-n", 4, "--family", family, "--output", "d", "--stats", "s.json")
    assert result.exit_code == 2
    assert len(whole("d")) == len(entries("s.json")) == 2
    assert result.stderr.count("\n") == 1
    for part in ("No space left on device: 'd/apple-seed", "2 of 4 images are finished and kept"):
        assert part in result.stderr


def test_a_failing_image_keeps_the_others(run: Run, family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mulosd import Engine

    whole_engine = Engine.to_images
    decoded: list[int] = []

    def to_images(self: Engine, tokens: object) -> list[Image.Image]:
        decoded.append(1)
        if len(decoded) == 3:
            raise RuntimeError("out of memory")
        return whole_engine(self, tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "to_images", to_images)
    result = run("generate", "apple", "-n", 4, "--family", family, "--decoder", "serial", "--output", "d")
    assert result.exit_code == 2
    # Four images end in the same step: the one behind the failure is kept too.
    assert len(whole("d")) == 3
    assert "RuntimeError: out of memory; 3 of 4 images are finished and kept" in result.stderr


def test_lines_count_the_images(run: Run, family: Path) -> None:
    out = run("generate", "apple", "-n", 3, "--family", family, "--output", "d").stdout
    assert [line.split("  ")[0] for line in out.splitlines()[::2]] == ["1 of 3", "2 of 3", "3 of 3"]


def test_a_second_call_draws_nothing_and_overwrite_draws_all(run: Run, family: Path) -> None:
    call = ("generate", "apple", "-n", 2, "--family", family, "--output", "d")
    assert run(*call).exit_code == 0
    before = {path: path.read_bytes() for path in Path("d").iterdir()}
    times = [path.stat().st_mtime_ns for path in before]
    second = run(*call, "--stats", "s.json")
    assert second.exit_code == 0 and "2 of 2 there already" in second.stdout
    assert [path.stat().st_mtime_ns for path in before] == times
    assert [image["seed"] for image in json.loads(Path("s.json").read_text())["images"]] == [0, 1]
    assert run(*call, "--overwrite").exit_code == 0
    assert all(path.stat().st_mtime_ns > then for path, then in zip(before, times, strict=True))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (["--decoder", "serial"], "decoder"),
        (["--sampling", "top_k=3"], "sampling"),
        (["--dtype", "bfloat16"], "dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_with_other_settings_is_refused_before_any_work(
    run: Run, fails: Fails, family: Path, other: list[str], word: str
) -> None:
    assert run("generate", "apple", "--family", family, "--output", "d").exit_code == 0
    kept = Path("d/apple-seed0.png").read_bytes()
    told = fails("generate", "apple", "-n", 2, "--family", family, "--output", "d", *other)
    assert "d/apple-seed0.png" in told and f"with {word} " in told and "--overwrite" in told
    assert Path("d/apple-seed0.png").read_bytes() == kept


def test_a_file_that_is_no_image_of_ours_is_refused(fails: Fails, run: Run, family: Path) -> None:
    Path("apple-seed0.png").write_bytes(b"my notes")
    assert "is no image that this command wrote" in fails("generate", "apple", "--family", family)
    assert run("generate", "apple", "--family", family, "--overwrite").exit_code == 0
    assert whole(".") == ["apple-seed0.png"]


def test_a_directory_in_the_way_of_an_image_is_refused(fails: Fails, family: Path) -> None:
    Path("apple-seed1.png").mkdir()
    assert "apple-seed1.png is a directory" in fails("generate", "apple", "-n", 2, "--family", family)


@pytest.mark.parametrize("option", ["--output", "--stats"])
def test_a_folder_that_cannot_be_written_is_refused(
    fails: Fails, family: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("shut").mkdir()
    may = os.access  # root may write anywhere
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode, **o: may(path, mode, **o) and not (mode & os.W_OK and Path(path).name == "shut"),
    )
    told = fails("generate", "apple", "--family", family, option, "shut" if option == "--output" else "shut/s.json")
    assert "not writable" in told


def test_files_that_are_one_are_refused(fails: Fails, family: Path) -> None:
    assert "twice" in fails("generate", "apple", "--family", family, "--output", "a.png", "--stats", "./a.png")


def test_a_link_stays_a_link_and_a_mode_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to("target")
    with atomic(link) as file:
        file.write(b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_images_of_many_are_those_of_one(run: Run, family: Path) -> None:
    run("generate", "apple", "-n", 9, "--family", family, "--decoder", "mulo:tau=0.2", "--output", "d")
    run("generate", "apple", "--seed", 8, "--family", family, "--decoder", "mulo:tau=0.2", "--output", "a.png")
    assert np.array_equal(np.asarray(Image.open("d/apple-seed8.png")), np.asarray(Image.open("a.png")))
