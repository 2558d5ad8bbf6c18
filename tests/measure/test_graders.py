"""Classes as objects, and intervals over prompts with several pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mulosd.engine.conditioning import ClassConditioner
from mulosd.engine.decoding import Serial
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.measure.images import ImageSet
from mulosd.measure.metrics.accuracy import Score, summarise
from mulosd.measure.readers.graders import GRADERS, ClassGrader, SceneGrader, grader_of
from mulosd.measure.run import Sample, difference
from mulosd.measure.statistics import BLOCK, bootstrap, bootstrap_ratio


def right(found: int) -> Score:
    return Score(1, found, 0, relations=True, background=True)


class Stripes:
    """Reads the class off the first feature."""

    def __init__(self) -> None:
        self.conditioner = ClassConditioner(3, ["cat, tabby", "dog", "owl"])

    def read(self, features: np.ndarray) -> np.ndarray:
        return features[:, 0].astype(np.int64)

    def ids(self, classes: Sequence[str | int]) -> np.ndarray:
        return np.asarray([self.conditioner.id(str(c)) for c in classes])


def test_a_class_is_an_object_that_is_asked_for_once() -> None:
    pictures = ImageSet(features=np.array([[0, 9], [2, 9], [2, 9]], np.float32))
    scores = ClassGrader(Stripes()).grade(["tabby", "1", "owl"], pictures)
    assert [s.found for s in scores] == [1, 0, 1]
    assert [s.scene for s in scores] == [True, False, True]
    assert summarise(scores)["value"] == pytest.approx(2 / 3)


def test_the_grader_is_that_of_the_file_beside_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRADERS, "classifier.safetensors", lambda family: ClassGrader(Stripes()))
    with pytest.raises(ValueError, match="not trained on scenes"):
        grader_of(random_family())
    family = Family.load(random_family().save(tmp_path / "family"))
    with pytest.raises(ValueError, match="not trained on scenes"):
        grader_of(family)
    (tmp_path / "family" / "classifier.safetensors").touch()
    assert grader_of(family).what == "classes"
    assert isinstance(grader_of(Family.load("emoji")), SceneGrader)


def test_pictures_of_a_prompt_are_one_observation() -> None:
    found = np.random.default_rng(0).integers(0, 2, 30)
    alone = summarise([right(int(f)) for f in found])
    copies = [right(int(f)) for f in np.repeat(found, 4)]
    together, apart = summarise(copies, group=4), summarise(copies)
    assert together["value"] == apart["value"] == alone["value"]
    assert together["ci95"] == pytest.approx(alone["ci95"]), "copies say nothing new"
    assert apart["ci95"][1] - apart["ci95"][0] < 0.6 * (together["ci95"][1] - together["ci95"][0])
    assert (together["prompts"], together["objects"]) == (30, 120)
    scene = together["scene"]["ci95"]
    assert scene[0] < together["scene"]["value"] < scene[1]


def test_differences_are_over_prompts_too() -> None:
    rng = np.random.default_rng(1)
    a, b = (Sample(Serial(), nll=np.repeat(rng.normal(m, 1, 20), 3)) for m in (0.5, 0))
    a.scores, b.scores = [right(1)] * 60, [right(i // 3 % 2) for i in range(60)]
    found = difference(a, b, group=3)
    assert found["nll"]["value"] == pytest.approx((a.nll - b.nll).mean())
    single = bootstrap_ratio((a.nll - b.nll)[::3], np.ones(20))
    assert found["nll"]["ci95"] == pytest.approx(single)
    assert found["accuracy"]["value"] == pytest.approx(0.5)
    assert difference(a, a)["accuracy"]["ci95"] == [0, 0]


def test_many_prompts_are_resampled_in_blocks() -> None:
    n = BLOCK // 100
    values = np.random.default_rng(0).normal(2, 1, (n, 1))
    low, high = bootstrap(np.hstack([values, np.ones((n, 1))]), lambda s: s[:, 0] / s[:, 1], resamples=250)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(n), rel=0.3)
    with pytest.raises(ValueError, match="not defined"):
        bootstrap(np.zeros((4, 2)), lambda s: s[:, 0] / s[:, 1])
