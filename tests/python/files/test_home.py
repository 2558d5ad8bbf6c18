"""`~` is the home folder wherever Python code gives a path, as it is in a shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mulosd
from mulosd.checkpoints.container import read_checkpoint
from mulosd.engine.atomic import write_json
from mulosd.engine.family import Family, store_calibration
from mulosd.engine.family_config import Calibration
from mulosd.engine.lock import lock_file
from mulosd.engine.paths import expanded
from mulosd.engine.random_family import random_family
from mulosd.files.arrays import read_npz
from mulosd.files.images import check_images, list_images, read_image
from mulosd.files.texts import read_json, read_lines
from mulosd.measure.evaluate import evaluate
from mulosd.measure.journal import Journal
from mulosd.measure.prompts import read_prompts
from mulosd.train.config import TrainingFile
from mulosd.train.export import export
from mulosd.train.sources import FolderSource
from mulosd.train.stages import run_stage

from ...tiny_training import noise_pictures, tiny_training

LOOP = {"steps": 1, "log_every": 1, "precision": "fp32", "threads": 1}
HOME = Path("~")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


READS: dict[str, Callable[[], Any]] = {
    "engine": lambda: mulosd.Engine.from_pretrained("~/family"),
    "checkpoint": lambda: read_checkpoint("~/a.pt"),
    "image": lambda: read_image(HOME / "images" / "a-0.png"),
    "images": lambda: list_images(HOME / "images")[3],
    "checked images": lambda: check_images(HOME / "images", least=4)[3],
    "training images": lambda: FolderSource(HOME / "images"),
    "json": lambda: read_json(HOME / "a.json"),
    "lines": lambda: read_lines(HOME / "a.txt")[0],
    "prompts": lambda: read_prompts(HOME / "a.txt")[0],
    "arrays": lambda: read_npz(HOME / "a.npz", ["a"], "an archive"),
}


def test_whatever_reads_a_file_takes_one_of_the_home_folder(home: Path) -> None:
    random_family().save(HOME / "family")
    noise_pictures(home / "images", 4)
    torch.save({"w": torch.ones(1)}, home / "a.pt")
    write_json(HOME / "a.json", 1)
    (home / "a.txt").write_text("apple\n")
    np.savez(home / "a.npz", a=np.ones(1))
    assert (home / "family" / "family.json").is_file()
    for name, how in READS.items():
        assert how(), name
    Image.new("RGB", (4, 4)).save(home / "b.png")
    assert read_image(HOME / "b.png").size == (4, 4)


def test_whatever_writes_does_so_in_the_home_folder(home: Path) -> None:
    random_family().save(HOME / "family")
    found = Calibration(2, "pixel", pool=1, radius=0, tau=0.5)
    store_calibration(HOME / "family", found)
    assert Family.load("~/family").calibration(2, "pixel") == found
    Journal(HOME / "runs.jsonl", {}).add((0,), {})
    assert lock_file(HOME / "x") == home / ".x.lock"
    evaluate(mulosd.Engine(random_family()), ["apple"], ["serial"], HOME / "report")
    assert (home / "report" / "report.json").is_file()
    assert list(Path().iterdir()) == [], "nothing lies in a folder that is called ~"


def test_training_reads_and_writes_in_the_home_folder(home: Path) -> None:
    noise_pictures(home / "images", 8)
    (home / "a.yaml").write_text(yaml.safe_dump(tiny_training(Path("~/images"), LOOP)))
    assert TrainingFile.load(HOME / "a.yaml").path == home / "a.yaml"
    for stage in ("tokenizer", "ar"):
        run_stage(stage, HOME / "a.yaml", HOME / "run")
    assert (home / "run" / "ar.pt").is_file()
    with pytest.raises(ValueError, match="upsampler"):
        export(HOME / "a.yaml", HOME / "run", HOME / "out")
    assert list(Path().iterdir()) == []


def test_a_home_folder_that_nobody_has() -> None:
    with pytest.raises(ValueError, match="there is no such home folder"):
        expanded("~nobody-of-this-name/x")
    assert expanded("a~b") == Path("a~b")
