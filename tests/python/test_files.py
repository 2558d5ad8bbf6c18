"""Names of pictures and writes that are whole or absent."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulosd.cli.files import SLUG_BYTES, SLUG_LENGTH, Output, slug
from mulosd.engine.atomic import atomic, write_json


@given(st.text(max_size=200))
def test_slug_is_a_file_name(prompt: str) -> None:
    name = slug(prompt)
    assert 0 < len(name) <= SLUG_LENGTH
    assert len(name.encode()) <= SLUG_BYTES
    assert not set(name) & set("/\\ .\0\n")
    assert name == name.strip("-")


def test_numbers_keep_equal_prompts_apart(tmp_path: Path) -> None:
    output = Output.check(tmp_path, 2)
    paths = output.paths(["an owl", "an owl"], [0, 0], [1, 2])
    assert [p.name for p in paths] == ["01-an-owl-seed0.png", "02-an-owl-seed0.png"]


@pytest.mark.parametrize("name", ["new", "new/", "v1.2"])
def test_other_names_are_directories(tmp_path: Path, name: str) -> None:
    assert Output.check(tmp_path / name, 1).directory


def test_directory_that_ends_in_png(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert Output.check(tmp_path / "a.png", 2).directory


def test_atomic_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic(path) as file:
            file.write(b"new")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_json(tmp_path / "j.json", {"a": "ü"})
    assert stat.S_IMODE((tmp_path / "j.json").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    assert "ü" in (tmp_path / "j.json").read_text(encoding="utf-8")
