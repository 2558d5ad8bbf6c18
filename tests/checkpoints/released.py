"""Golden sets, and small checkpoints in the containers of the projects that release them; shared by the tests here."""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
AR_SETS = ("llamagen_c2i", "llamagen_t2i", "tar_ar_dtok", "tar_ar_dtok_slot")


def golden_tensor(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The tensor that the golden values were computed with: it depends on its name, its shape and one seed alone."""
    g = torch.Generator().manual_seed((zlib.crc32(key.encode()) + seed) % 2**31)
    x = torch.randn(shape, generator=g)
    if len(shape) == 1:
        return 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
    if "embedding" in key or "abs_pe" in key:
        return 0.5 * x
    return x * (1.0 if key == "output.weight" else 0.5) / x[0].numel() ** 0.5 * 2


@dataclass(frozen=True)
class Golden:
    """One golden set: weights under the names of the released files, constructor arguments, inputs and outputs."""

    name: str
    state: dict[str, Tensor]
    args: dict[str, Any]
    arrays: dict[str, Tensor]

    @property
    def image_positions(self) -> str:
        """Which rows of the position table the reference took, see golden/README.md."""
        return "first" if self.name == "tar_ar_dtok" else "slot"

    @property
    def rows(self) -> Tensor:
        """Of which image tokens the logits are stored; all of them but in the set that says so."""
        return self.arrays.get("rows", torch.arange(len(self.arrays["logits_cond"])))

    @property
    def condition(self) -> Tensor:
        return self.arrays["cond_label" if "cond_label" in self.arrays else "cond_features"]


def load_golden(name: str) -> Golden:
    # The same weights and inputs serve both ways of Tar's positions.
    described = json.loads((GOLDEN / f"{name.removesuffix('_slot')}.json").read_text())
    state = {k: golden_tensor(k, tuple(s), described["seed"]) for k, s in described["shapes"].items()}
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file.files}
    if "features" in described:
        # Inputs come from a seed as weights do; only what the reference made of them is stored.
        shape, scale = described["features"]["shape"], described["features"]["scale"]
        features = scale * torch.randn(shape, generator=torch.Generator().manual_seed(described["seed"] + 2))
        mask = arrays.get("prefix_mask")
        arrays["cond_features"] = features if mask is None else features * mask[..., None]
    return Golden(name, state, described.get("args", {}), arrays)


CONTAINERS: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Any]] = {
    "bare": lambda state, args: state,
    "model": lambda state, args: {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "steps": 7,
        "args": argparse.Namespace(gpt_model="GPT-B", dropout_p=0.1),
    },
    "module": lambda state, args: {"module": state},
    "state_dict": lambda state, args: {"state_dict": state},
    "tar": lambda state, args: {"model": {"name": "llama-abs-LP", "args": args, "sd": state}},
}


def tiny_ar(kind: str, grid: int, seed: int, *, dim: int = 32, vocab: int = 64, prefix: int = 81) -> dict[str, Tensor]:
    """A random AR state dict, two layers, under the names of the released files."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g) * 0.3

    state = {
        "tok_embeddings.weight": random(vocab, dim),
        "norm.weight": torch.ones(dim),
        "output.weight": random(vocab, dim),
    }
    if kind == "class":
        state["cls_embedding.embedding_table.weight"] = random(11, dim)
    elif kind == "caption":
        state["cls_embedding.uncond_embedding"] = random(120, 2048)
        state["cls_embedding.cap_proj.fc1.weight"] = random(dim, 2048) / 10
        state["cls_embedding.cap_proj.fc2.weight"] = random(dim, dim)
    else:
        state["abs_pe"] = random(1, grid * grid + prefix - 1, dim)
        state["clip_proj.weight"], state["clip_proj.bias"] = random(dim, 48), random(dim)
    for i in range(2):
        stem = f"layers.{i}."
        state[stem + "attention_norm.weight"] = state[stem + "ffn_norm.weight"] = torch.ones(dim)
        state[stem + "attention.wqkv.weight"] = random(3 * dim, dim)
        state[stem + "attention.wo.weight"] = random(dim, dim)
        state[stem + "feed_forward.w1.weight"] = random(48, dim)
        state[stem + "feed_forward.w3.weight"] = random(48, dim)
        state[stem + "feed_forward.w2.weight"] = random(dim, 48)
    return state


def tiny_vq(seed: int = 0, codes: int = 64) -> dict[str, Tensor]:
    """A random VQ state dict of two levels (2 px a token)."""
    from mulosd.engine.models.vq import VQ, VQConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = VQ(VQConfig(codes, 8, 32, (32, 32), 1, 1)).state_dict()
    return {**state, "quantize.codebook_used": torch.zeros(65536)}


def tiny_ta_tok(seed: int = 0, dim: int = 48, code_dim: int = 8, codes: int = 32) -> dict[str, Tensor]:
    """A random TA-Tok state dict under the names of the released file, with parts that decoding does not use."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g) * 0.2

    def linear(name: str, out: int, into: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(out, into), f"{name}.bias": random(out)}

    vision = "decoder.vision_model."
    state = {
        "bottleneck.regularizer.embedding.weight": random(codes, code_dim),
        **linear("bottleneck.regularizer.embedding_proj", code_dim, code_dim),
        **linear("bottleneck.out_linear", code_dim, code_dim),
        **linear("bottleneck.in_linear", code_dim, dim),
        **linear(f"{vision}embeddings.patch_embedding", dim, code_dim),
        f"{vision}embeddings.position_embedding.weight": random(256, dim),
        f"{vision}head.probe": random(1, 1, dim),
        f"{vision}post_layernorm.weight": 1 + random(dim),
        f"{vision}post_layernorm.bias": random(dim),
        **linear("decode_task_layer.0", dim, dim),
        **linear("decode_task_layer.2", dim, dim),
        **linear("encode_task_layer.0", dim, dim),
        "encoder.embeddings.position_embedding.weight": random(4, dim),
    }
    for i in range(2):
        stem = f"{vision}encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            state[f"{stem}{norm}.weight"], state[f"{stem}{norm}.bias"] = 1 + random(dim), random(dim)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{stem}self_attn.{name}", dim, dim)
        state |= linear(f"{stem}mlp.fc1", 64, dim)
        state |= linear(f"{stem}mlp.fc2", dim, 64)
    return state
