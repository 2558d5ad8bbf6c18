"""The layers of Llama-like models on the hub: their sizes from config.json, their weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.language import LanguageConfig
from .repository import Source


def number(values: Mapping[str, Any], name: str, usual: float | None, where: str) -> float:
    """A number of config.json above 0; ValueError names it."""
    value = values.get(name)
    value = usual if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{where}.{name} must be a number above 0, got {value!r}")
    return value


def whole(values: Mapping[str, Any], name: str, usual: int | None, where: str) -> int:
    """A whole number of config.json of at least 1; ValueError names it."""
    value = number(values, name, usual, where)
    if value != int(value):
        raise ValueError(f"{where}.{name} must be a whole number, got {value!r}")
    return int(value)


def rotation(values: Mapping[str, Any], usual_base: float, where: str) -> dict[str, Any]:
    """Base, share of the head and sections of rotary positions; ValueError for another kind than the plain one."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"{where} has rotary positions of the kind {kind!r}; only plain ones are known")
    base = given.get("rope_theta", values.get("rope_theta")) or usual_base
    share = given.get("partial_rotary_factor", values.get("partial_rotary_factor")) or 1.0
    return {"rope_base": float(base), "share": float(share), "sections": tuple(given.get("mrope_section") or ())}


def sizes(values: Mapping[str, Any], usual: Mapping[str, Any], where: str = "text_config") -> dict[str, Any]:
    """What `LanguageConfig` takes of the layers of a text configuration.

    Args:
        values: of config.json.
        usual: what a value is that is not there.
        where: its name, for messages.
    """
    if values.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}.hidden_act must be 'silu', got {values['hidden_act']!r}")
    if values.get("mlp_bias"):
        raise ValueError(f"{where}.mlp_bias: feed-forward networks with biases are not known")
    dim = whole(values, "hidden_size", usual["hidden_size"], where)
    heads = whole(values, "num_attention_heads", usual["num_attention_heads"], where)
    head_dim = whole(values, "head_dim", dim // heads, where)
    turned = rotation(values, usual["rope_theta"], where)
    return {
        "text_vocab": whole(values, "vocab_size", usual["vocab_size"], where),
        "dim": dim,
        "n_layers": whole(values, "num_hidden_layers", usual["num_hidden_layers"], where),
        "n_heads": heads,
        "n_kv_heads": whole(values, "num_key_value_heads", usual.get("num_key_value_heads") or heads, where),
        "head_dim": head_dim,
        "ffn_dim": whole(values, "intermediate_size", usual["intermediate_size"], where),
        "norm_eps": number(values, "rms_norm_eps", usual["rms_norm_eps"], where),
        "bias": bool(values.get("attention_bias", usual.get("attention_bias", False))),
        "rope_base": turned["rope_base"],
        "rotary_dim": int(head_dim * turned["share"]),
    }


def interleaved(weight: Tensor, head_dim: int, turned: int) -> Tensor:
    """Rows [heads * head_dim, ...] of a query or key projection whose rotary pairs lie half a rotation apart, reordered
    so that they are neighbours."""
    heads = weight.unflatten(0, (-1, head_dim))
    pairs = heads[:, :turned].unflatten(1, (2, turned // 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([pairs, heads[:, turned:]], dim=1).flatten(0, 1)


def layer_sources(config: LanguageConfig, prefix: str, *, fused_gate: bool = False) -> dict[str, Source]:
    """Sources of the layers and the final norm of a `LanguageModel`.

    Args:
        config: of the model.
        prefix: of the names in the repository, before `layers.0`.
        fused_gate: whether gate and up projections are one tensor there.
    """
    head, turned = config.head_dim, config.turned

    def together(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([interleaved(q, head, turned), interleaved(k, head, turned), v])

    found = {"norm.weight": Source((f"{prefix}norm.weight",))}
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"{prefix}layers.{i}"
        for kind in ("weight", "bias") if config.bias else ("weight",):
            names = tuple(f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv")
            found[f"{ours}.wqkv.{kind}"] = Source(names, together)
        found[f"{ours}.wo.weight"] = Source((f"{theirs}.self_attn.o_proj.weight",))
        if fused_gate:
            found[f"{ours}.w13.weight"] = Source((f"{theirs}.mlp.gate_up_proj.weight",))
        else:
            names = (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")
            found[f"{ours}.w13.weight"] = Source(names, lambda gate, up: torch.cat([gate, up]))
        found[f"{ours}.w2.weight"] = Source((f"{theirs}.mlp.down_proj.weight",))
        norms = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        if config.sandwich:
            norms |= {"attention_out_norm": "post_self_attn_layernorm", "ffn_out_norm": "post_mlp_layernorm"}
        for own, name in norms.items():
            found[f"{ours}.{own}.weight"] = Source((f"{theirs}.{name}.weight",))
    return found
