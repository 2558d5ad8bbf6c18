"""The reader of classes: what it learns, counts, stores and refuses. Features are made up; Lite0 is not needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mulosd.measure.readers.classes import ClassReader
from mulosd.measure.readers.objects import Reader
from mulosd.measure.statistics import wilson

NAMES = ["rose, roses", "cat", "yin yang"]


def clouds(counts: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes around distinct centres, and the classes."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(len(counts)), counts)
    centres = 4 * np.eye(len(counts), 6) + 100
    return (centres[classes] + rng.normal(size=(len(classes), 6))).astype(np.float32), classes


@pytest.fixture(scope="module")
def reader() -> ClassReader:
    return ClassReader.fit(*clouds((300, 100, 20), 0), NAMES)


def test_unbalanced_classes_are_told_apart(reader: ClassReader) -> None:
    features, classes = clouds((400, 400, 400), 1)
    found = reader.accuracy_of(classes.tolist(), features)
    # The best possible reader: two centres lie 4 sqrt(2) apart, so an error is beyond 2.8 sigma (0.3 % each).
    assert found["value"] > 0.98 and min(found["by_class"].values()) > 0.96 and found["pictures"] == 1200


def test_accuracy_counts_what_was_asked_for(reader: ClassReader) -> None:
    features, classes = clouds((2, 2, 2), 2)
    assert (reader.logits(features).argmax(axis=1) == classes).all()
    found = reader.accuracy_of(["roses", "0", "Cat", "rose", "yin yang", 2], features)
    assert found["value"] == 5 / 6 and found["ci95"] == list(wilson(5, 6)) and found["top5"] == 1
    assert found["by_class"] == {"rose, roses": 2 / 3, "cat": 1.0, "yin yang": 1.0}
    with pytest.raises(ValueError, match="dog"):
        reader.accuracy_of(["dog"], features[:1])
    with pytest.raises(ValueError, match="1 and 6"):
        reader.accuracy_of(["cat"], features)


def test_a_stored_reader_reads_the_same(reader: ClassReader, tmp_path: Path) -> None:
    reader.figures = {"held_out": {"value": 0.5}}
    reader.save(tmp_path / "classifier.safetensors")
    loaded = ClassReader.load(tmp_path / "classifier.safetensors")
    assert loaded.names == NAMES and loaded.figures == reader.figures
    features, classes = clouds((30, 30, 30), 3)
    assert (loaded.read(features) == reader.read(features)).mean() > 0.95  # float16 may turn a near tie
    assert loaded.accuracy_of(classes.tolist(), features)["value"] > 0.9


def test_other_files_are_refused(reader: ClassReader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train classifier"):
        ClassReader.load(tmp_path / "none.safetensors")
    reader.save(tmp_path / "classes.safetensors")
    with pytest.raises(ValueError, match="not a reader"):
        Reader.load(tmp_path / "classes.safetensors")
    with pytest.raises(ValueError, match="each with an image"):
        ClassReader.fit(*clouds((3, 3), 0), NAMES)
