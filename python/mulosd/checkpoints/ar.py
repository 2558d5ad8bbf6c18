"""Released AR checkpoints, LlamaGen's and Tar's: their names for tensors, and what their shapes say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.family_config import check_numbers, mapping, told
from ..engine.models.ar_dtok import PREFIXES, ARDTokConfig
from ..engine.models.ar_model import ARModel
from ..engine.models.kinds import AR_MODELS, build, kind_of
from ..engine.models.llamagen import LlamaGenConfig
from ..engine.paths import expanded
from ..files.texts import parse_json
from .container import Checkpoint, check_matrices, count_parts, fit, read_checkpoint

# The head size is in no shape: heads by layers and width of the models that were released or described
# (LlamaGen's B, L, XL, XXL, XXXL, 1B, 3B, 7B; Tar's S and LP).
HEADS = {
    (12, 768): 12,
    (24, 1024): 16,
    (36, 1280): 20,
    (48, 1536): 24,
    (48, 2560): 40,
    (22, 2048): 32,
    (24, 3200): 32,
    (32, 4096): 32,
    (12, 384): 6,
    (30, 1280): 20,
}
KEYS = {
    "cls_embedding.embedding_table.weight": "class_embedding.weight",
    "cls_embedding.uncond_embedding": "null_caption",
    "cls_embedding.cap_proj.fc1.weight": "caption_in.weight",
    "cls_embedding.cap_proj.fc2.weight": "caption_out.weight",
}
BLOCK_KEYS = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.wqkv.weight": "wqkv.weight",
    "attention.wo.weight": "wo.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w2.weight": "w2.weight",
}
NEEDED = (
    "tok_embeddings.weight",
    "norm.weight",
    "output.weight",
    "layers.0.feed_forward.w1.weight",
)
# Tables that older files hold and that follow from the sizes.
IGNORED = ("freqs_cis", "causal_mask")
METADATA = "mulosd.ar"


def load_ar(
    path: str | Path,
    *,
    heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    grid: int | None = None,
    image_positions: str = "slot",
) -> ARModel:
    """An AR model of LlamaGen or Tar, frozen, on the CPU.

    Args:
        path: a released file in any of its containers, one AR file of a converted folder, or that folder itself.
        heads: attention heads, where the sizes are not those of a released model.
        dtype: of the weights.
        grid: which model of a folder, by its token side; None is the largest.
        image_positions: of a released file of Tar, see `ARDTokConfig`; "first" reproduces values that were taken by
            stepping the public class outside of its `sample()`.

    Raises:
        ValueError: the file is none of these, is damaged or asks for code to be run, heads are needed, or tensors are
            missing, unexpected or mis-shaped (all are listed).
    """
    file = expanded(path)
    if file.is_dir():
        from ..engine.family import Family

        family = Family.load(file, dtype=dtype)
        return family.ar if grid is None else family.model(grid)
    checkpoint = read_checkpoint(file)
    if METADATA in checkpoint.metadata:
        values = parse_json(checkpoint.metadata[METADATA], f"{file}: {METADATA}")
        with told(file):
            check_numbers(mapping(values, METADATA), METADATA, len(checkpoint.tensors), 1 << 31)
            kind = values.pop("kind")
            if kind not in AR_MODELS:
                raise ValueError(f"{METADATA}.kind must be one of {', '.join(AR_MODELS)}, got {kind!r}")
        return assemble(kind, values, checkpoint.tensors, file, dtype)
    kind, values, tensors = translate(checkpoint, heads)
    if image_positions != "slot":
        if kind != "ar-dtok":
            raise ValueError(f"image_positions={image_positions!r} is for Tar's models, {file} holds another ({kind})")
        values["image_positions"] = image_positions
    return assemble(kind, values, tensors, file, dtype)


def assemble(
    kind: str, values: dict[str, Any], tensors: Mapping[str, Tensor], file: Path, dtype: torch.dtype
) -> ARModel:
    """A model of a configuration with these tensors."""
    with told(file), torch.device("meta"):
        model = build(AR_MODELS, kind, values)
    fit(file, tensors, model.state_dict(), describe(model))
    state = {k: v.to(dtype, copy=True) if v.is_floating_point() else v for k, v in tensors.items()}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def describe(model: ARModel) -> str:
    """A model's sizes in words."""
    c = model.config
    return (
        f"{kind_of(model, AR_MODELS)} with {c.n_layers} layers, {c.dim} dimensions, {c.n_heads} heads and "
        f"{c.vocab_size} tokens"
    )


def translate(
    checkpoint: Checkpoint, heads: int | None = None, grid: int | None = None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Kind, configuration and tensors, under this package's names, of a released checkpoint.

    Args:
        checkpoint: what `read_checkpoint` gave.
        heads: attention heads, where sizes or arguments do not tell.
        grid: token side that the model was trained for, where it is known.
    """
    with told(checkpoint.path):
        check_is_ar(checkpoint)
        t, path = checkpoint.tensors, checkpoint.path
        check_matrices(path, t, ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"))
        vocab, dim = t["tok_embeddings.weight"].shape
        layers = count_parts(path, t, "layers.")
        gate = t["layers.0.feed_forward.w1.weight"]
        sizes: dict[str, Any] = {
            "vocab_size": vocab,
            "dim": dim,
            "n_layers": layers,
            "n_heads": count_heads(checkpoint, layers, dim, heads),
            "ffn_dim": len(gate),
            "grids": [] if grid is None else [grid],
        }
        check_matrices(path, t, ("clip_proj.weight", *(k for k in t if k.startswith("cls_embedding."))))
        if "abs_pe" in t:
            kind, values = "ar-dtok", dtok_values(checkpoint, sizes, t["abs_pe"].shape[-2])
        elif "cls_embedding.embedding_table.weight" in t:
            n_classes = len(t["cls_embedding.embedding_table.weight"]) - 1
            kind, values = "llamagen", LlamaGenConfig("class", **sizes, n_classes=n_classes).to_dict()
        elif "cls_embedding.uncond_embedding" in t:
            length, width = t["cls_embedding.uncond_embedding"].shape
            kind, values = "llamagen", LlamaGenConfig("caption", **sizes, cond_len=length, cond_dim=width).to_dict()
        else:
            raise ValueError(
                f"{path} has no condition that is known: missing: cls_embedding.embedding_table.weight (classes), "
                f"cls_embedding.uncond_embedding (captions) or abs_pe (Tar)"
            )
        with torch.device("meta"):
            model = build(AR_MODELS, kind, values)
        known = {k: v for k, v in t.items() if k not in IGNORED}
        fit(path, known, released(model.state_dict()), describe(model))
        return kind, values, renamed(known)


def check_is_ar(checkpoint: Checkpoint) -> None:
    """ValueError unless the file holds what every AR model of LlamaGen or Tar does."""
    names = ", ".join(list(checkpoint.tensors)[:4])
    for needed in NEEDED:
        if needed not in checkpoint.tensors:
            raise ValueError(
                f"{checkpoint.path} is no AR model of LlamaGen or Tar: {needed} is missing (it holds {names} and so on)"
            )


def count_heads(checkpoint: Checkpoint, layers: int, dim: int, heads: int | None) -> int:
    """Attention heads: as asked, by the file's arguments, or by the table of released sizes."""
    known = checkpoint.args.get("n_head", HEADS.get((layers, dim)))
    found = heads if heads is not None else known
    if found is None:
        raise ValueError(
            f"{checkpoint.path} has {layers} layers of {dim} dimensions, which is no released size, and the number of "
            f"heads is in no tensor: give --heads (heads=)"
        )
    if not isinstance(found, int) or isinstance(found, bool) or found < 1 or dim % found:
        raise ValueError(f"{found} heads do not divide the {dim} dimensions of {checkpoint.path}")
    return found


def dtok_values(checkpoint: Checkpoint, sizes: dict[str, Any], positions: int) -> dict[str, Any]:
    """Configuration of Tar's AR de-tokenizer: the table of positions holds prefix and grid, less the last token."""
    prefix, tokens = (checkpoint.args.get(key) for key in ("cls_token_num", "max_seq_len"))
    if any(n is not None and (not isinstance(n, int) or not 0 <= n <= positions + 1) for n in (prefix, tokens)):
        raise ValueError(
            f"{checkpoint.path} has {positions} positions, but its arguments say cls_token_num {prefix!r} and "
            f"max_seq_len {tokens!r}: it is damaged"
        )
    if not sizes["grids"]:
        fitting = [p for p in PREFIXES if math.isqrt(max(0, positions + 1 - p)) ** 2 == positions + 1 - p > 0]
        prefix = prefix if prefix is not None or not fitting else fitting[0]
        if prefix is not None and tokens is None:
            tokens = positions + 1 - prefix
        side = math.isqrt(tokens or 0)
        if prefix is None or side < 1 or side * side != tokens:
            raise ValueError(
                f"{checkpoint.path} has {positions} positions and does not say how many of them are the condition's; "
                f"expected a prefix of {', '.join(map(str, PREFIXES))} and a square grid"
            )
        sizes = {**sizes, "grids": [side]}
    if prefix is None:
        prefix = positions + 1 - sizes["grids"][0] ** 2
    projection = checkpoint.tensors.get("clip_proj.weight")
    if projection is None:
        raise ValueError(f"{checkpoint.path} is no AR model of Tar: missing: clip_proj.weight")
    values = {**sizes, "positions": positions, "cond_len": prefix, "cond_dim": projection.shape[1]}
    return ARDTokConfig.from_dict(values).to_dict()


def released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model of this package under the names of released files, for their shapes."""
    names = {own: name for name, own in KEYS.items()}
    block_names = {own: name for name, own in BLOCK_KEYS.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "abs_pe":
            found[name] = tensor[None]
        elif not name.startswith("blocks."):
            found[names.get(name, name)] = tensor
        else:
            _, layer, rest = name.split(".", 2)
            if rest == "w13.weight":
                gate, up = tensor.chunk(2)
                found[f"layers.{layer}.feed_forward.w1.weight"] = gate
                found[f"layers.{layer}.feed_forward.w3.weight"] = up
            else:
                found[f"layers.{layer}.{block_names[rest]}"] = tensor
    return found


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a released file under this package's names; gate and up projections become one."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "abs_pe":
            found[name] = tensor[0]
        elif not name.startswith("layers."):
            found[KEYS.get(name, name)] = tensor
        else:
            _, layer, rest = name.split(".", 2)
            if rest == "feed_forward.w1.weight":
                up = tensors[f"layers.{layer}.feed_forward.w3.weight"]
                found[f"blocks.{layer}.w13.weight"] = torch.cat([tensor, up])
            elif rest != "feed_forward.w3.weight":
                found[f"blocks.{layer}.{BLOCK_KEYS[rest]}"] = tensor
    return found


@torch.no_grad()
def logits(
    model: ARModel,
    condition: Tensor | None,
    tokens: Tensor,
    prefix_mask: Tensor | None = None,
    *,
    grid: int | None = None,
) -> Tensor:
    """Teacher-forced logits.

    Args:
        model: what `load_ar` gave.
        condition: class ids int64 [B], caption features [B, 120, 2048], or Tar features [B, n, 1152]; None is the
            unconditional branch.
        tokens: int64 [B, N], image tokens in raster order.
        prefix_mask: [B, T], prefix slots that may be seen (true or not 0); None is all.
        grid: side of the token grid; None is the model's own where it is known (converted models, Tar), otherwise the
            tokens fill the grid: N is its square.

    Returns:
        float32 [B, N, V], logits of image token i given the tokens before i.

    Raises:
        ValueError: shapes do not fit the model.
    """
    c = model.config
    if grid is None and len(c.grids) == 1:
        grid = c.grids[0]
    side = math.isqrt(tokens.shape[-1]) if grid is None else grid
    if tokens.dim() != 2 or (grid is None and side * side != tokens.shape[1]) or tokens.shape[1] > side * side:
        raise ValueError(
            f"tokens must be [B, N] and fill a square grid, or fit into one whose side grid= says (now {grid}); "
            f"got {list(tokens.shape)}"
        )
    if isinstance(c, LlamaGenConfig) and c.condition == "class":
        null = torch.full((len(tokens),), c.n_classes)
        ids = null if condition is None else condition
        if ids.shape != (len(tokens),) or ids.is_floating_point():
            raise ValueError(
                f"this model takes class ids int64 [B] = [{len(tokens)}], got {ids.dtype} {list(ids.shape)}"
            )
        cond = ids.long().view(-1, 1, 1)
    else:
        width = getattr(c, "cond_dim", 0)
        cond = torch.zeros(len(tokens), c.cond_len, width) if condition is None else condition
        flexible = isinstance(c, ARDTokConfig)
        if cond.dim() != 3 or cond.shape[::2] != (len(tokens), width) or not (flexible or cond.shape[1] == c.cond_len):
            raise ValueError(
                f"this model takes features [B, {c.cond_len}, {width}] with B = {len(tokens)}, got {list(cond.shape)}"
            )
    mask = None if prefix_mask is None else prefix_mask.to(torch.bool)
    if mask is not None and mask.shape != cond.shape[:2]:
        raise ValueError(f"prefix_mask must be {list(cond.shape[:2])}, got {list(mask.shape)}")
    device = model.output.weight.device
    mask = None if mask is None else mask.to(device)
    return model(cond.to(device), tokens.to(device), side, mask)
