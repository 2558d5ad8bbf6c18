"""The parts that models are composed of, against plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mulosd.engine.models.layers import Block, apply_rotary, rotary_table_1d


def test_scores_of_1d_rotary_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    table = rotary_table_1d(20, 8, 100.0)

    def score(a: int, b: int) -> float:
        return float((apply_rotary(q, table[a : a + 1]) * apply_rotary(k, table[b : b + 1])).sum())

    assert score(3, 1) == pytest.approx(score(17, 15), abs=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7])
@torch.inference_mode()
def test_a_layer_with_grouped_queries_biases_and_norms(rows: int) -> None:
    torch.manual_seed(0)
    block = Block(16, 4, 4, 8, 1e-5, n_kv_heads=2, bias=True, qk_norm=True)
    for parameter in block.parameters():
        parameter.data.normal_()
    x = torch.randn(1, rows, 16)
    projected = F.rms_norm(x, (16,), block.attention_norm.weight, 1e-5) @ block.wqkv.weight.T + block.wqkv.bias
    assert block.q_norm is not None and block.k_norm is not None
    q, k, v = (t.unflatten(-1, (-1, 4)) for t in projected.split([16, 8, 8], dim=-1))
    expected = F.rms_norm(q, (4,), block.q_norm.weight, 1e-5), F.rms_norm(k, (4,), block.k_norm.weight, 1e-5), v
    for got, want in zip(block.qkv(x), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_plain_layers_keep_their_names() -> None:
    """Stored families hold them."""
    names = ["attention_norm", "wqkv", "wo", "ffn_norm", "w13", "w2"]
    assert list(Block(8, 2, 4, 8, 1e-5).state_dict()) == [f"{name}.weight" for name in names]


def test_key_heads_divide_query_heads() -> None:
    with pytest.raises(ValueError, match="n_kv_heads must divide the 4 heads, got 3"):
        Block(16, 4, 4, 8, 1e-5, n_kv_heads=3)
