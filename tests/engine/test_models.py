"""Models: row-causality of resamplers, rotary embedding, tokenizer shapes, vocabulary."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.engine.family import Family
from mulosd.engine.models.layers import apply_rotary, rotary_table
from mulosd.engine.models.text import END, PAD, Vocabulary
from mulosd.engine.models.tokenizer import Tokenizer, TokenizerConfig
from mulosd.engine.models.upsampler import LatentResampler, ResamplerConfig
from mulosd.engine.random_family import random_family
from mulosd.kernels.upsample_pool import neighbours


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(4, 8), (4, 16), (8, 4), (16, 4)]), st.integers(0, 3), st.integers(0, 99))
def test_resamplers_are_row_causal(pair: tuple[int, int], row: int, seed: int) -> None:
    torch.manual_seed(seed)
    source, target = pair
    model = LatentResampler(ResamplerConfig(source, target, 4, channels=8, blocks=3))
    x = torch.randn(1, source, source, 4)
    changed = x.clone()
    first = row * max(1, source // target)  # first input row that output row-block `row` must not see, minus one
    cut = first + max(1, source // target)
    changed[:, cut:] += torch.randn_like(changed[:, cut:])
    seen = row * max(1, target // source) + max(1, target // source)
    with torch.inference_mode():
        a, b, part = model(x), model(changed), model(x[:, :cut])
    assert torch.allclose(a[:, :seen], b[:, :seen], atol=1e-6)
    assert torch.allclose(a[:, :seen], part, atol=1e-5)
    if cut < source:
        assert not torch.allclose(a[:, seen:], b[:, seen:])


def test_rotary_table_matches_the_formula() -> None:
    table = rotary_table(4, 3, 16, 100.0)
    assert table.shape == (3 + 16, 8, 2)
    assert torch.equal(table[:3, :, 0], torch.ones(3, 8)) and torch.equal(table[:3, :, 1], torch.zeros(3, 8))
    row, col, j = 2, 3, 1
    slot = 3 + row * 4 + col
    assert math.isclose(float(table[slot, j, 0]), math.cos(row * 100.0 ** (-j / 4)), abs_tol=1e-6)
    assert math.isclose(float(table[slot, 4 + j, 1]), math.sin(col * 100.0 ** (-j / 4)), abs_tol=1e-6)


def test_rotated_scores_depend_on_offsets_only() -> None:
    table = rotary_table(6, 0, 8, 50.0)
    q, k = torch.randn(8), torch.randn(8)

    def score(a: tuple[int, int], b: tuple[int, int]) -> float:
        def turn(x: torch.Tensor, at: tuple[int, int]) -> torch.Tensor:
            return apply_rotary(x.view(1, 1, 1, 8), table[at[0] * 6 + at[1]][None])

        return float((turn(q, a) * turn(k, b)).sum())

    assert math.isclose(score((1, 2), (0, 4)), score((4, 3), (3, 5)), abs_tol=1e-5)
    assert not math.isclose(score((1, 2), (0, 4)), score((1, 2), (0, 3)), abs_tol=1e-3)


def test_tokenizer_round_trip_shapes_and_errors() -> None:
    tokenizer = Tokenizer(TokenizerConfig(16, 4, (8, 8), 1)).eval()
    assert tokenizer.config.patch == 4
    with torch.inference_mode():
        index = tokenizer.encode(torch.rand(2, 3, 8, 12) * 2 - 1)
        assert index.shape == (2, 2, 3) and int(index.max()) < 16
        assert tokenizer.decode(index).shape == (2, 3, 8, 12)
    with pytest.raises(ValueError, match="multiples of 4"):
        tokenizer.encode(torch.zeros(1, 3, 6, 8))


def test_tokens_move_with_the_picture() -> None:
    """Whole-token shifts of a picture shift its tokens, away from the border."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(64, 4, (8, 8), 1)).eval()
    picture = torch.rand(1, 3, 24, 24) * 2 - 1
    with torch.inference_mode():
        a = tokenizer.encode(picture)
        b = tokenizer.encode(picture.roll((4, 8), (2, 3)))
    assert torch.equal(a.roll((1, 2), (1, 2))[:, 2:-1, 3:-1], b[:, 2:-1, 3:-1])


def test_vocabulary_takes_the_longest_phrase_and_reports_unknown_words() -> None:
    vocabulary = Vocabulary({"ball": 3, "soccer ball": 4, "red": 5}, frozenset({"a", "and"}))
    assert vocabulary.parse("A soccer ball, and a RED ball!") == ([4, 5, 3], [])
    assert vocabulary.parse("a soccer player") == ([], ["soccer", "player"])
    assert vocabulary.encode("red ball", 5) == [5, 3, END, PAD, PAD]
    with pytest.raises(ValueError, match="at most 1"):
        vocabulary.encode("red ball", 2)
    with pytest.raises(ValueError, match="reserved"):
        Vocabulary({"x": 1})


def test_tables_of_a_family_are_made_once() -> None:
    family = random_family()
    table = family.neighbours(3)
    assert family.neighbours(3) is table
    assert torch.equal(table, neighbours(family.tokenizer.codebook, 3))
    assert torch.equal(family.null_features(2), family.null_features(1).expand(2, -1, -1))
    with torch.no_grad():
        family.tokenizer.codebook.copy_(family.tokenizer.codebook.roll(1, 0))
    family.to("cpu")
    assert not torch.equal(family.neighbours(3), table), "moving a family forgets what was computed from its weights"


@pytest.mark.parametrize("temperature", [0.0, math.inf])
def test_temperatures_of_up_samplers_that_mean_nothing_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature.* got {temperature:g}"):
        ResamplerConfig(2, 4, 4, temperature=temperature)


def test_a_family_keeps_the_temperature_of_its_up_samplers() -> None:
    described = random_family().describe()
    stated = {**described, "resamplers": [{**r, "temperature": 0.1} for r in described["resamplers"]]}
    silent = {
        **described,
        "resamplers": [{k: v for k, v in r.items() if k != "temperature"} for r in described["resamplers"]],
    }
    assert {m.config.temperature for m in Family.build(stated).resamplers.values()} == {0.1}
    assert {m.config.temperature for m in Family.build(silent).resamplers.values()} == {0.05}
