"""A folder of training images is read whole before training starts, and damaged training files are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mulosd.engine.random_family import random_family
from mulosd.measure.references import folder_reference
from mulosd.train.checkpoint import read, write
from mulosd.train.config import TrainingFile, images_of
from mulosd.train.sources import FolderSource
from mulosd.train.stages import run_stage

from ..tiny_training import noise_pictures, tiny_training

LOOP = {"steps": 1, "log_every": 1, "precision": "fp32", "threads": 1}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = tiny_training(noise_pictures(tmp_path / "images", 8), LOOP, upsampler={"pairs": [[4, 8]], "batch": 1})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "tiny.yaml"


def test_all_that_cannot_be_trained_on_is_named_before_the_first_step(config: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    Image.new("RGB", (1, 1)).save(images / "tiny.png")
    Image.new("RGB", (2000, 15)).save(images / "strip.png")
    (images / "text.jpg").write_text("no image")
    whole = (images / "a-0.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "folder.png").mkdir()
    (images / "._a.png").write_bytes(b"of macOS")
    with pytest.raises(ValueError, match="4 of 12 images") as raised:
        run_stage("tokenizer", config, tmp_path / "run")
    said = str(raised.value)
    assert "tiny.png (1 x 1 px, the shorter side must have 16)" in said and "strip.png (2000 x 15 px" in said
    assert "text.jpg (" in said and "cut.png (" in said and "folder.png" not in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_ten_bad_images_are_named_and_the_rest_counted(config: Path, tmp_path: Path) -> None:
    for n in range(13):
        (tmp_path / "images" / f"bad{n:02d}.png").touch()
    with pytest.raises(ValueError, match=r"13 of 21 images .*bad09\.png .*, and 3 more; repair them") as raised:
        run_stage("tokenizer", config, tmp_path / "run")
    assert "bad10.png" not in str(raised.value)


def test_captions_in_latin_1_stop_only_stages_that_need_them(config: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "a-0.txt").write_bytes("café".encode("latin-1"))
    (images / "b-1.txt").write_bytes(b"\xef\xbb\xbfa red wall")
    run_stage("tokenizer", config, tmp_path / "run")
    run_stage("upsampler", config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 of 8 .*a-0\.png \(its caption: .*a-0\.txt is no UTF-8 text: byte 3"):
        run_stage("ar", config, tmp_path / "run")
    (images / "a-0.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"its caption a-0\.txt is empty"):
        run_stage("ar", config, tmp_path / "run")
    assert FolderSource.caption(images / "b-1.png") == "a red wall"


def test_images_beside_a_family_and_references_are_checked_whole(tmp_path: Path) -> None:
    folder = noise_pictures(tmp_path / "images", 6)
    family = random_family()
    assert images_of(family, folder) is not None
    Image.new("RGB", (15, 15)).save(folder / "small.png")
    (folder / "cut.png").write_bytes((folder / "a-0.png").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"2 of 8 images .*cut\.png .*small\.png \(15 x 15 px, the shorter side must"):
        images_of(family, folder)
    (folder / "other.png").write_text("no image")
    with pytest.raises(ValueError, match=r"2 of 9 images .*cannot be used: .*repair them") as raised:
        folder_reference(folder, 8, 16)
    assert "cut.png" in str(raised.value) and "other.png" in str(raised.value)


BAD_YAML = {
    "empty": (b"", "mapping at its top level"),
    "list": (b"- a\n- b\n", "mapping at its top level"),
    "Latin-1": ("family: café".encode("latin-1"), "no UTF-8 text"),
    "no YAML": (b"family: [a, b\n", "no YAML"),
    "NUL": (b"family: a\0b", "NUL"),
    "code": (b"family: !!python/object/apply:os.system [echo]\ndata: {kind: folder}", "no YAML"),
    "deep": (b"family: " + b"[" * 5000 + b"]" * 5000, "no YAML|nested"),
    "a list that holds itself": (b"family: x\ndata: &a [*a]", "nested more than"),
    "a billion entries": (
        b"family: x\ndata:\n" + b"".join(b"  a%d: &a%d [%s]\n" % (n, n, b", ".join(
            [b"*a%d" % (n - 1) if n else b"x"] * 10)) for n in range(10)),
        "more than 200,000 entries",
    ),
    "date": (b"family: 2001-99-99\ndata: {kind: folder}", "no YAML"),
    "number": (b"family: x\nseed: " + b"9" * 5000 + b"\ndata: {kind: folder}", "no YAML"),
    "seed": (b"family: x\nseed: many\ndata: {kind: folder}", "seed must be int"),
    "name": (b'family: "\\e[31mred"\ndata: {kind: folder}', "printable"),
    "no data": (b"family: x\n", "lacks the section 'data'"),
    "kind": (b"family: x\ndata: {kind: videos}", "data.kind must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_YAML)
def test_a_training_file_that_is_damaged_or_hostile_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = BAD_YAML[case]
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        TrainingFile.load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 1000


def test_training_files_of_windows_are_read(config: Path) -> None:
    text = config.read_text()
    for data in (b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode("utf-16")):
        config.write_bytes(data)
        assert TrainingFile.load(config).name == "tiny"


def test_any_damage_of_a_training_file_is_read_or_refused_with_its_name(config: Path) -> None:
    rng, whole, said = np.random.default_rng(2), config.read_bytes(), []
    for _ in range(150):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        if rng.random() < 0.3:
            del data[at:]
        else:
            data[at] = int(rng.integers(256))
        config.write_bytes(bytes(data))
        try:
            file = TrainingFile.load(config)
            file.loop("tokenizer")
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(str(config) in text and "\n" not in text for text in said)


def wrong_states() -> dict[str, Any]:
    good = {"module": {"w": torch.zeros(2)}, "ema": {"w": torch.zeros(2)}, "optimizers": [], "step": 1, "task": {}}
    return {
        "a list": [good],
        "no step": {k: v for k, v in good.items() if k != "step"},
        "weights that are none": {**good, "ema": {"w": 1}},
        "a step that is none": {**good, "step": "1"},
        "optimisers that are none": {**good, "optimizers": {}},
    }


@pytest.mark.parametrize("case", wrong_states())
def test_a_training_checkpoint_that_holds_something_else(case: str, tmp_path: Path) -> None:
    torch.save(wrong_states()[case], tmp_path / "ar.pt")
    with pytest.raises(ValueError, match=r"ar\.pt is no checkpoint of training, .*remove it to start again"):
        read(tmp_path / "ar.pt")


def test_a_training_checkpoint_of_other_sizes_is_told_in_one_line(config: Path, tmp_path: Path) -> None:
    run_stage("tokenizer", config, tmp_path / "run")
    state = read(path := tmp_path / "run" / "tokenizer.pt")
    state["module"].popitem()
    write(state, path)
    with pytest.raises(ValueError, match=r"tokenizer\.pt does not fit what the training file asks for") as raised:
        run_stage("tokenizer", config, tmp_path / "run")
    assert "\n" not in str(raised.value)
