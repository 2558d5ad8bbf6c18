"""Class-conditional families on the command line: what they know, near misses, sheets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from mulosd.engine.random_family import random_family

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = random_family(classes=("sunflower, sunflowers", "cougar face", "pagoda"))
    return made.save(tmp_path_factory.mktemp("families") / "photo")


def test_info_lists_the_classes(run: Run, photo: Path) -> None:
    assert "sunflower, sunflowers; cougar face; pagoda" in " ".join(run("info", photo).stdout.split())
    described = json.loads(run("info", photo, "--json").stdout)
    assert described["classes"] == ["sunflower, sunflowers", "cougar face", "pagoda"] and described["words"] == []
    assert "objects" not in run("info", photo).stdout


def test_a_class_is_drawn_by_name_and_by_number(run: Run, photo: Path) -> None:
    options = ("--family", photo, "--decoder", "serial", "--seed", "3", "--num-images", "2")
    for prompt, output in (("a pagoda", "name"), ("2", "number")):
        assert run("generate", prompt, *options, "--output", f"{output}/").exit_code == 0
    named, numbered = (sorted(Path(folder).iterdir()) for folder in ("name", "number"))
    assert len(named) == 2
    for a, b in zip(named, numbered, strict=True):
        assert Image.open(a).tobytes() == Image.open(b).tobytes()


def test_a_near_miss_gets_suggestions(fails: Callable[..., str], photo: Path) -> None:
    assert "such as sunflower" in fails("generate", "sunflour", "--family", photo, "--output", "x.png")


def test_a_sheet_shows_every_class(run: Run, fails: Callable[..., str], photo: Path) -> None:
    done = run("bench", "sheet", "--family", photo, "--each", "2", "--decoder", "serial", "--output", "sheet.png")
    assert done.exit_code == 0 and "3 prompts, 2 of each" in done.stdout
    assert Image.open("sheet.png").width == 6 * (16 + 6) + 6
    assert "--each" in fails("bench", "sheet", "--family", photo, "--each", "0", "--output", "other.png")
    assert "mkdir" in fails("bench", "sheet", "--family", photo, "--output", "none/sheet.png")
