"""`mulosd train`: which stages a command runs, and the sprite sheet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from mulosd.data.sprites import Sprites

Run = Callable[..., Result]

CONFIG = """
family: shapes
data:
  kind: scenes
  sprites: sprites.png
  objects:
    ball: [circle, balls]
    box: [square, boxes]
  backgrounds:
    white: [255, 255, 255]
"""

ICONS = {
    "width": 32,
    "height": 32,
    "icons": {
        "circle": {"body": '<circle cx="16" cy="16" r="12" fill="#f00"/>'},
        "square": {"body": '<path d="M4 4h24v24H4z" fill="#00f"/>'},
    },
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "shapes.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("tokenizer", ["tokenizer"]),
        ("text", ["text"]),
        ("all", ["tokenizer", "ar", "upsampler"]),  # this file has no captions and no reader
    ],
)
def test_stages_and_options(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch, command: str, stages: list[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(stage: str, path: Path, folder: Path, *, device: str, steps: int | None, checked: bool) -> None:
        assert checked, "the images of a folder are checked before the first stage, not by each"
        calls.append((stage, path, folder, device, steps))

    monkeypatch.setattr("mulosd.train.stages.run_stage", record)
    result = run("train", command, "--config", config, "--run", "runs", "--steps", 3)
    assert result.exit_code == 0, result.output
    assert calls == [(stage, config, Path("runs"), "cpu", 3) for stage in stages]


def test_attaching_needs_a_run_and_a_family(run: Run, config: Path, tmp_path: Path) -> None:
    result = run("train", "attach", "--config", config, "--run", "none", "--family", tmp_path)
    assert result.exit_code == 2 and "mulosd train eagle" in " ".join(result.stderr.split())
    result = run("train", "attach", "--config", config, "--run", tmp_path, "--family", tmp_path)
    assert result.exit_code == 2 and "no family folder" in " ".join(result.stderr.split())


def test_missing_section_is_told(run: Run, config: Path) -> None:
    result = run("train", "tokenizer", "--config", config, "--run", "runs")
    assert result.exit_code == 2
    assert "'tokenizer'" in result.stderr
    assert "'data'" in result.stderr


def test_sprites(run: Run, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "icons.json").write_text(json.dumps(ICONS))
    result = run("train", "sprites", "--pack", pack, "--config", config, "--output", "sprites.png", "--size", 32)
    assert result.exit_code == 0, result.output
    sheet = Sprites.load(Path("sprites.png"))
    assert sheet.names == ("ball", "box")
    assert sheet.rgba[0, 16, 16].tolist() == [255, 0, 0, 255]
    assert sheet.rgba[0, 0, 0, 3] == 0
    assert sheet.rgba[1, 16, 16].tolist() == [0, 0, 255, 255]


def test_sprites_that_the_pack_lacks(run: Run, config: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    (tmp_path / "icons.json").write_text(json.dumps({**ICONS, "icons": {}}))
    result = run("train", "sprites", "--pack", tmp_path, "--config", config, "--output", "sprites.png")
    assert result.exit_code == 2
    assert "circle" in result.stderr
