"""Tar's text-aligned tokenizer TA-Tok: the decode path of a released file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.family_config import told
from ..engine.models.ta_tok import TATok, TATokConfig
from .container import Checkpoint, check_matrices, count_parts, fit, read_checkpoint

BOOK = "bottleneck.regularizer."
# What only understanding images needs, or nothing at all.
IGNORED = (
    "encoder.",
    "teacher",
    "encode_task_layer.",
    "scale_layer.",
    "bottleneck.in_linear.",
    "bottleneck.regularizer.stochastic_temperature_inv",
)
NEEDED = (
    f"{BOOK}embedding.weight",
    "decoder.embeddings.patch_embedding.weight",
    "decoder.embeddings.position_embedding.weight",
    "decoder.encoder.layers.0.mlp.fc1.weight",
)
LAYER_KEYS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "self_attn.out_proj",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}


def load_ta_tok(path: str | Path) -> TATok:
    """The decode path of a TA-Tok file, frozen, in float32 on the CPU.

    Raises:
        ValueError: the file is no TA-Tok, is damaged, or tensors are missing, unexpected or mis-shaped.
    """
    values, tensors = translate_ta_tok(read_checkpoint(path))
    with torch.device("meta"):
        model = TATok(TATokConfig.from_dict(values))
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def translate_ta_tok(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and float32 tensors of the decode path: the codebook comes with all its projections applied."""
    with told(checkpoint.path):
        # Newer releases of transformers save the decoder without the inner name.
        t = {
            k.replace("decoder.vision_model.", "decoder."): v
            for k, v in checkpoint.tensors.items()
            if not k.startswith(IGNORED) and not k.startswith(("decoder.vision_model.head.", "decoder.head."))
        }
        missing = [k for k in NEEDED if k not in t]
        if missing:
            raise ValueError(f"{checkpoint.path} is no TA-Tok of Tar; missing: {', '.join(missing)}")
        check_matrices(checkpoint.path, t, NEEDED)
        dim, code_dim = t["decoder.embeddings.patch_embedding.weight"].shape
        places = len(t["decoder.embeddings.position_embedding.weight"])
        config = TATokConfig(
            len(t[f"{BOOK}embedding.weight"]),
            code_dim,
            dim,
            count_parts(checkpoint.path, t, "decoder.encoder.layers."),
            ffn_dim=len(t["decoder.encoder.layers.0.mlp.fc1.weight"]),
            position_side=math.isqrt(places),
        )
        what = f"a TA-Tok of {config.codebook_size} codes and {config.n_layers} layers"
        fit(checkpoint.path, t, released(config), what)
        tensors = {"codebook": codes(t, normalised(checkpoint.args)), **decoder(t)}
        return config.to_dict(), {k: v.to(torch.float32, copy=True) for k, v in tensors.items()}


def normalised(args: Mapping[str, Any]) -> bool:
    """Whether codes are brought to unit length; it stands somewhere inside the bottleneck's arguments."""
    for key, value in args.items():
        if key == "l2_normalized":
            return bool(value)
        if isinstance(value, Mapping) and normalised(value):
            return True
    return False


def codes(t: Mapping[str, Tensor], unit: bool) -> Tensor:
    """SimVQ's codebook behind its projection, and the bottleneck's last layer: what the decoder takes for each id."""
    rows = F.linear(t[f"{BOOK}embedding.weight"].float(), t[f"{BOOK}embedding_proj.weight"].float())
    rows = rows + t[f"{BOOK}embedding_proj.bias"].float()
    if unit:
        rows = F.normalize(rows, dim=-1)
    return F.linear(rows, t["bottleneck.out_linear.weight"].float(), t["bottleneck.out_linear.bias"].float())


def released(c: TATokConfig) -> dict[str, Tensor]:
    """Shapes of the decode path's tensors by the names of the released file, on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{BOOK}embedding.weight": (c.codebook_size, c.code_dim),
        "decoder.embeddings.position_embedding.weight": (c.position_side**2, c.dim),
    }
    linear = {
        f"{BOOK}embedding_proj": (c.code_dim, c.code_dim),
        "bottleneck.out_linear": (c.code_dim, c.code_dim),
        "decoder.embeddings.patch_embedding": (c.dim, c.code_dim),
        "decode_task_layer.0": (c.dim, c.dim),
        "decode_task_layer.2": (c.dim, c.dim),
    }
    norms = ["decoder.post_layernorm"]
    for i in range(c.n_layers):
        stem = f"decoder.encoder.layers.{i}."
        norms += [f"{stem}layer_norm1", f"{stem}layer_norm2"]
        linear |= {f"{stem}self_attn.{name}_proj": (c.dim, c.dim) for name in ("q", "k", "v", "out")}
        linear |= {f"{stem}mlp.fc1": (c.ffn_dim, c.dim), f"{stem}mlp.fc2": (c.dim, c.ffn_dim)}
    for name, (out, into) in linear.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    for name in norms:
        shapes |= {f"{name}.weight": (c.dim,), f"{name}.bias": (c.dim,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def decoder(t: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the vision transformer and the layers behind it, under this package's names."""
    found: dict[str, Tensor] = {}
    for name, tensor in t.items():
        if name.startswith("bottleneck."):
            continue
        if name.startswith("decoder.encoder.layers."):
            _, _, _, layer, rest = name.split(".", 4)
            part, kind = rest.rsplit(".", 1)
            if part == "self_attn.q_proj":
                joined = torch.cat([t[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
                found[f"layers.{layer}.self_attn.in_proj_{kind}"] = joined
            elif part in LAYER_KEYS:
                found[f"layers.{layer}.{LAYER_KEYS[part]}.{kind}"] = tensor
            continue
        name = name.replace("decoder.embeddings.", "").replace("decoder.post_layernorm.", "post_norm.")
        found[name.replace("decode_task_layer.", "task.")] = tensor
    return found
