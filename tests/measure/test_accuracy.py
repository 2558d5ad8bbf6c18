"""What prompts ask for, and counting it in what is seen."""

from __future__ import annotations

from itertools import islice

import pytest

from mulosd.data.scenes import RELATIONS, SceneConfig, scenes
from mulosd.engine.models.text import Vocabulary
from mulosd.measure.metrics.accuracy import Asked, PromptParser, Score, holds, score, summarise
from mulosd.measure.readers.objects import Reading


@pytest.fixture(scope="module")
def parser(vocabulary: Vocabulary, scene_config: SceneConfig) -> PromptParser:
    return PromptParser(vocabulary, scene_config)


def at(name: str, row: int, col: int) -> Reading:
    return Reading(name, row, col, 1.0)


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a ball", Asked({"ball": 1})),
        ("two balls on a blue background", Asked({"ball": 2}, (), "blue")),
        ("a box left of a ring on gray", Asked({"box": 1, "ring": 1}, (("box", "left of", "ring"),), "gray")),
        ("three boxes and a sphere", Asked({"box": 3, "ball": 1})),
        ("a cross over two rings", Asked({"cross": 1, "ring": 2}, (("cross", "above", "ring"),))),
        ("a ball, a ball and a box", Asked({"ball": 2, "box": 1})),
        ("left of a ball", Asked({"ball": 1})),
        ("a zebra on a white background", Asked({}, (), "white")),
        ("a ball above a box below a ring", Asked(
            {"ball": 1, "box": 1, "ring": 1}, (("ball", "above", "box"), ("box", "below", "ring"))
        )),
    ],
)  # fmt: skip
def test_prompts_are_parsed(parser: PromptParser, prompt: str, asked: Asked) -> None:
    assert parser.parse(prompt) == asked


def test_captions_ask_for_their_own_scene(parser: PromptParser, scene_config: SceneConfig) -> None:
    for scene in islice(scenes(scene_config, 0, True), 200):
        asked = parser.parse(scene.caption)
        seen = [at(n, *c) for n, c in zip(scene.objects, scene.cells, strict=True)]
        assert asked.total == len(scene.objects)
        assert bool(asked.relations) == bool(scene.relation)
        assert score(asked, seen, scene.background).scene, scene.caption


def test_a_vocabulary_without_the_scenes_words_is_refused(scene_config: SceneConfig) -> None:
    with pytest.raises(ValueError, match="ball"):
        PromptParser(Vocabulary({"box": 3}), scene_config)


def test_objects_are_counted_as_multisets() -> None:
    asked = Asked({"ball": 2, "box": 1})
    one_missing = score(asked, [at("ball", 0, 0), at("box", 4, 4)], "blue")
    assert (one_missing.asked, one_missing.found, one_missing.extra, one_missing.scene) == (3, 2, 0, False)
    one_extra = score(asked, [at("ball", 0, 0), at("ball", 0, 4), at("ball", 4, 0), at("box", 4, 4)], "blue")
    assert (one_extra.found, one_extra.extra, one_extra.scene) == (3, 1, False)
    wrong = score(asked, [at("ring", 0, 0)] * 3, "blue")
    assert (wrong.found, wrong.extra) == (0, 3)


@pytest.mark.parametrize("relation", RELATIONS)
def test_each_relation_holds_on_one_side_only(relation: str) -> None:
    sides = {"left of": (3, 0), "right of": (3, 5), "above": (0, 3), "below": (5, 3)}
    centre = at("box", 3, 3)
    for name, (row, col) in sides.items():
        assert holds(relation, at("ball", row, col), centre) == (name == relation)
    assert not holds(relation, at("ball", 3, 3), centre)


def test_a_diagonal_is_no_relation() -> None:
    assert not any(holds(r, at("ball", 0, 0), at("box", 4, 4)) for r in RELATIONS)
    with pytest.raises(ValueError, match="behind"):
        holds("behind", at("ball", 0, 0), at("box", 4, 4))


def test_a_wrong_relation_or_background_spoils_the_scene_but_not_the_objects() -> None:
    asked = Asked({"ball": 1, "box": 1}, (("ball", "left of", "box"),), "blue")
    mirrored = score(asked, [at("ball", 2, 5), at("box", 2, 0)], "blue")
    assert (mirrored.found, mirrored.relations, mirrored.scene) == (2, False, False)
    right = [at("ball", 2, 0), at("box", 2, 5)]
    assert score(asked, right, "blue").scene
    assert not score(asked, right, "gray").scene
    assert score(Asked(asked.objects, asked.relations), right, "gray").scene


def test_a_relation_between_equals_needs_two_of_them() -> None:
    asked = Asked({"ball": 2}, (("ball", "above", "ball"),))
    assert not score(asked, [at("ball", 0, 0)], "blue").relations
    assert score(asked, [at("ball", 4, 0), at("ball", 0, 0)], "blue").relations


def test_accuracy_is_pooled_over_objects() -> None:
    result = summarise([Score(3, 0, 0, True, True), Score(1, 1, 1, True, True), Score(1, 1, 0, True, True)])
    assert result["value"] == pytest.approx(2 / 5)
    assert result["objects"] == 5
    assert result["extra_per_image"] == pytest.approx(1 / 3)
    assert result["scene"]["value"] == pytest.approx(1 / 3)
    low, high = result["ci95"]
    assert low < 0.4 < high


def test_a_perfect_sample_still_has_an_interval() -> None:
    result = summarise([Score(1, 1, 0, True, True)] * 20)
    assert result["value"] == 1.0
    assert 0.8 < result["ci95"][0] < 0.9
    assert result["ci95"][1] == 1.0


def test_prompts_without_objects_have_no_accuracy() -> None:
    assert summarise([Score(0, 0, 0, True, True)])["value"] is None
    with pytest.raises(ValueError, match="no images"):
        summarise([])
