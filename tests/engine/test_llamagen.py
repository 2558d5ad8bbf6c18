"""LlamaGen's rotation, prefix and head sizes; the few-row path of linear layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.collapse import run_prefix
from mulosd.engine.models.ar_dtok import ARDTok, ARDTokConfig
from mulosd.engine.models.ar_model import ARModel
from mulosd.engine.models.layers import apply_rotary, rotary_table
from mulosd.engine.models.llamagen import LlamaGen, LlamaGenConfig
from mulosd.engine.runner import Feed, run


def model(heads: int, dim: int, condition: str = "caption") -> LlamaGen:
    torch.manual_seed(0)
    made = LlamaGen(LlamaGenConfig(condition, 40, dim, 2, heads, 48, (4,), 12 if condition == "caption" else 1, 5, 16))
    for tensor in made.state_dict().values():
        if tensor.dim() > 1:
            tensor.normal_(std=0.2)
    return made.eval().requires_grad_(False)


def test_rotation_equals_the_published_values() -> None:
    """Printed by the reference for slot 121 of a text-conditional model, which is cell (0, 1)."""
    table = rotary_table(16, 120, 64, 10000.0, zero_prefix=True)
    assert table.shape == (120 + 256, 32, 2) and not table[:120].any()
    assert torch.equal(table[120], torch.tensor([1.0, 0.0]).expand(32, 2))
    pairs = {0: (1.0, 0.0), 16: (0.5403, 0.8415), 17: (0.8460, 0.5332)}
    for pair, values in pairs.items():
        assert torch.allclose(table[121, pair], torch.tensor(values), atol=1e-4)
    # The cell below turns the row's pairs by the same angles.
    assert torch.equal(table[120 + 16, :16], table[121, 16:]) and torch.equal(table[120 + 16, 16:], table[120, 16:])
    odd = rotary_table(4, 1, 100, 10000.0, zero_prefix=True)
    assert odd.shape == (17, 50, 2) and torch.equal(odd[1 + 4, :25], odd[2, 25:])
    x = torch.randn(1, 3, 2, 64)
    assert not apply_rotary(x, table[:3]).any()


@torch.inference_mode()
@pytest.mark.parametrize(("heads", "dim"), [(2, 200), (2, 64), (4, 48)])
@pytest.mark.parametrize("collapse", [False, True])
def test_the_cache_gives_the_logits_of_the_definition(heads: int, dim: int, collapse: bool) -> None:
    """Head sizes 100, 32 and 12; prompts that see different numbers of prefix slots in one batch."""
    made = model(heads, dim)
    tokens = torch.randint(40, (3, 16))
    features = torch.randn(3, 12, 16)
    mask = torch.arange(12) >= torch.tensor([0, 5, 11])[:, None]
    cache = KVCache(made, 4, collapse=collapse)
    wanted = made(features, tokens, 4, mask)
    lanes = [Lane(cache, features[i : i + 1], mask=mask[i]) for i in range(3)]
    if collapse:
        first = torch.cat([lane.write_collapsed() for lane in lanes])
    else:
        first = torch.cat([r.logits.cond for r in run([Feed(lane, None) for lane in lanes]) if r.logits])
    assert torch.allclose(first, wanted[:, 0], atol=1e-4)
    for span in (range(6), range(6, 15)):
        rows = run([Feed(lane, t[span.start : span.stop], span) for lane, t in zip(lanes, tokens, strict=True)])
        found = torch.stack([r.logits.cond for r in rows if r.logits])
        assert torch.allclose(found, wanted[:, span.start + 1 : span.stop + 1], atol=1e-4)


@torch.inference_mode()
def test_features_of_zeros_are_the_null_caption() -> None:
    made = model(2, 64)
    zeros, tokens = torch.zeros(1, 12, 16), torch.randint(40, (1, 16))
    learned = made(made.null_caption[None], tokens, 4)
    assert torch.equal(made(zeros, tokens, 4), learned)
    assert not torch.allclose(learned, made(torch.full_like(zeros, 1e-3), tokens, 4), atol=1e-3)


@torch.inference_mode()
def test_padding_of_the_prefix_is_seen_by_nobody() -> None:
    made = model(2, 64)
    tokens, mask = torch.randint(40, (1, 16)), torch.arange(12)[None] >= 5
    features = torch.randn(1, 12, 16)
    other = torch.where(mask[..., None], features, torch.randn(1, 12, 16))
    assert torch.allclose(made(features, tokens, 4, mask), made(other, tokens, 4, mask), atol=1e-5)
    assert not torch.allclose(made(features, tokens, 4), made(other, tokens, 4), atol=1e-2)
    means, _ = run_prefix(made, features, 4, mask[0])
    narrow = LlamaGen(replace(made.config, cond_len=7))
    narrow.load_state_dict({**made.state_dict(), "null_caption": made.null_caption[5:]})
    short, _ = run_prefix(narrow, features[:, 5:], 4, None)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(means, short, strict=True))


def test_models_are_told_apart_by_what_they_need() -> None:
    with pytest.raises(ValueError, match="3 heads do not fit 64 dimensions"):
        LlamaGenConfig("class", 40, 64, 2, 3, 48)
    with pytest.raises(ValueError, match="condition must be one of class, caption"):
        LlamaGenConfig("clip", 40, 64, 2, 2, 48)
    assert isinstance(model(2, 64), ARModel)


SIZES = {
    "B": (12, 12, 768, 2048, 110.9, 112.5),
    "L": (24, 16, 1024, 2816, 342.9, 345.3),
    "XL": (36, 20, 1280, 3584, 774.7, 777.9),
    "XXL": (48, 24, 1536, 4096, 1411, 1415),
    "XXXL": (48, 40, 2560, 6912, 3893, 3902),
    "1B": (22, 32, 2048, 5632, 1200, 1206),
    "3B": (24, 32, 3200, 8704, 3097, 3110),
    "7B": (32, 32, 4096, 11008, 6615, 6636),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_the_released_sizes(name: str) -> None:
    """Millions of parameters, counted on instances of the reference class."""
    layers, heads, dim, ffn, by_class, by_caption = SIZES[name]
    for condition, length, wanted in (("class", 1, by_class), ("caption", 120, by_caption)):
        with torch.device("meta"):
            made = LlamaGen(LlamaGenConfig(condition, 16384, dim, layers, heads, ffn, (), length))
        count = sum(t.numel() for t in made.state_dict().values()) / 1e6
        assert abs(count - wanted) < (0.06 if wanted < 1000 else 0.6)


def test_parameters_of_tars_ar_models() -> None:
    for grid, wanted in ((16, 654.2), (32, 655.2), (64, 659.2)):
        with torch.device("meta"):
            made = ARDTok(ARDTokConfig(16384, 1280, 30, 20, 3584, 728 + grid * grid, 729, (grid,)))
        assert abs(sum(t.numel() for t in made.state_dict().values()) / 1e6 - wanted) < 0.06
        assert KVCache.bytes_per_row(made.to(torch.bfloat16), grid) == (729 + grid * grid) * 2 * 30 * 1280 * 2
