"""Prompts for more objects than a family has learned to draw are warned about, wherever prompts are checked."""

from __future__ import annotations

import pytest

from mulosd.engine.conditioning.limit import ObjectLimit
from mulosd.engine.conditioning.phrases import PhraseConditioner
from mulosd.engine.engine import Engine
from mulosd.engine.hub import load_family
from mulosd.engine.models.text import Vocabulary

WORDS = {"cat": 3, "cats": 3, "frog": 4, "frogs": 4, "blue": 5, "two": 6, "three": 7}
VOCABULARY = Vocabulary(WORDS, frozenset({"a", "and", "on", "background"}))
LIMIT = ObjectLimit(2, ("cat", "frog"), {"two": 2, "three": 3})


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a cat", 1),
        ("cats", 1),
        ("two cats on a blue background", 2),
        ("three frogs", 3),
        ("a cat, a frog and a cat", 3),
        ("a cat, a dog and a frog", 2),  # nobody knows what a dog is: that is another warning
        ("two cats and two frogs", 4),
        ("three blue frogs", 3),
        ("blue", 0),
    ],
)
def test_objects_that_a_prompt_asks_for(prompt: str, asked: int) -> None:
    assert LIMIT.asked(VOCABULARY, prompt) == asked
    said = LIMIT.warning(VOCABULARY, prompt)
    assert (said is not None) == (asked > 2)
    if said is not None:
        assert "at most 2 objects" in said and f"asks for {asked}" in said and repr(prompt) in said


@pytest.mark.parametrize("values", [{"most": 0, "objects": []}, {"most": 2, "objects": [], "numbers": {"two": 0}}])
def test_a_limit_that_cannot_be(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ObjectLimit.from_dict(values)


def test_the_bundled_family_draws_two() -> None:
    family = load_family("emoji", weights=False)
    for prompt in ("three frogs", "a cat, a car and a frog on a pink background", "two cats and a rocket"):
        [said] = family.check_prompts([prompt])
        assert said.startswith("family 'emoji' draws images of at most 2 objects") and "asks for 3" in said
    assert family.check_prompts(["two frogs", "a cat left of a guitar on a yellow background"]) == []
    [both] = family.check_prompts(["a zebra and three frogs"])
    assert "does not know 'zebra'" in both and "; it draws images of at most 2 objects" in both


def test_an_engine_warns_and_draws(engine: Engine) -> None:
    conditioner = engine.family.conditioner
    assert isinstance(conditioner, PhraseConditioner)
    limited = PhraseConditioner(conditioner.vocabulary, conditioner.text, ObjectLimit(1, ("apple", "pear")))
    engine.family.conditioner = limited
    try:
        found = engine.generate("an apple and a pear", decoder="serial")
    finally:
        engine.family.conditioner = conditioner
    assert len(found.images) == 1
    assert any("at most 1 object," in said for said in found.warnings)
    assert PhraseConditioner.from_dict(limited.to_dict()).limit == limited.limit
    assert PhraseConditioner.from_dict(conditioner.to_dict()).limit is None
