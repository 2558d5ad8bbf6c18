"""Tar's AR de-tokenizer by its formulas, in float64, without a cache: where the golden values of "slot" come from.

`python tests/checkpoints/plain_ar_dtok.py` writes them anew. Blocks as LlamaGen's (RMSNorm, SwiGLU, causal attention
over prefix and image), but no rotation: every slot gets a row of `abs_pe`, the prefix and each image token that of its
own slot ("slot", as the public class does inside `sample()` and in training), or each image token row 0 ("first", as
it does when it is stepped outside of that).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from released import GOLDEN, Golden, load_golden
from torch import Tensor

GUIDANCE = 4.0


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def forward(state: dict[str, Tensor], heads: int, features: Tensor, tokens: Tensor, positions: str) -> Tensor:
    """Logits float64 [n + 1, V] of image tokens 0 to n, given features [T, cond_dim] and tokens int64 [n]."""
    w = {name: tensor.double() for name, tensor in state.items()}
    prefix, table = len(features), w["abs_pe"][0]
    rows = table[prefix : prefix + len(tokens)] if positions == "slot" else table[:1]
    image = w["tok_embeddings.weight"][tokens] + rows
    x = torch.cat([F.linear(features.double(), w["clip_proj.weight"], w["clip_proj.bias"]) + table[:prefix], image])
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    for layer in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers."))):
        stem = f"layers.{layer}."
        qkv = norm(x, w[f"{stem}attention_norm.weight"]) @ w[f"{stem}attention.wqkv.weight"].T
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ w[f"{stem}attention.wo.weight"].T
        h, ffn = norm(x, w[f"{stem}ffn_norm.weight"]), f"{stem}feed_forward."
        x = x + (F.silu(h @ w[f"{ffn}w1.weight"].T) * (h @ w[f"{ffn}w3.weight"].T)) @ w[f"{ffn}w2.weight"].T
    return norm(x[prefix - 1 :], w["norm.weight"]) @ w["output.weight"].T


def branches(golden: Golden, tokens: Tensor, positions: str) -> tuple[Tensor, Tensor]:
    """Logits of the conditional and the unconditional branch, whose features are zeros."""
    features = golden.condition[0]
    cond, uncond = (
        forward(golden.state, golden.args["n_head"], given, tokens, positions)
        for given in (features, torch.zeros_like(features))
    )
    return cond, uncond


def greedy(golden: Golden, positions: str) -> Tensor:
    """Guided arg-max tokens int64 [N]."""
    tokens = torch.zeros(0, dtype=torch.int64)
    while len(tokens) < golden.args["max_seq_len"]:
        cond, uncond = (logits[-1] for logits in branches(golden, tokens, positions))
        best = (uncond + (cond - uncond) * GUIDANCE).topk(2)
        if float(best.values[0] - best.values[1]) < 1e-3:
            raise ValueError(f"token {len(tokens)} is a near tie, which float32 may decide either way")
        tokens = torch.cat([tokens, best.indices[:1]])
    return tokens


def write() -> None:
    golden = load_golden("tar_ar_dtok")
    cond, uncond = branches(golden, golden.arrays["tokens"][0, :-1], "slot")
    rows = torch.arange(3, len(cond), 4)  # a quarter of the positions, the last one among them: files stay small
    found = {
        "rows": rows,
        "logits_cond": cond[rows].float(),
        "logits_uncond": uncond[rows].float(),
        "greedy_cfg": greedy(golden, "slot")[None].int(),
    }
    arrays = {"tokens": golden.arrays["tokens"], **found}
    np.savez_compressed(GOLDEN / "tar_ar_dtok_slot.npz", **{name: array.numpy() for name, array in arrays.items()})


if __name__ == "__main__":
    write()
