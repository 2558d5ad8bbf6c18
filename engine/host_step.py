"""Steps of few tokens on a CPU: all layers of a model in one call of the host kernels.

At the size of a small family Python and the dispatch of torch take longer than the arithmetic of a step; one call has
neither. It serves what `engine.linear_choice` found the host kernels not slower for; all else goes layer by layer.
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch import Tensor

from ..kernels import host
from ..kernels.decode_layers import OP, Call, Layer, Stack, Weight
from ..kernels.registry import ENVIRONMENT
from .batch import Batch
from .cache import KVCache
from .models.ar_model import ARModel
from .models.eagle import Model
from .models.layers import Block, RMSNorm
from .models.linear import Linear, row_class
from .models.quantized import QuantizedLinear

# In `KVCache.steps`, which is emptied when the cache moves.
KEY = "host"
# Parts of a block, of which some blocks lack the last.
WEIGHTS = ("wqkv", "wo", "w13", "w2", "attention_norm", "ffn_norm", "attention_out_norm", "ffn_out_norm")


def run_layers(model: Model, batch: Batch, x: Tensor) -> Tensor | None:
    """Embedded tokens [rows * count, dim] of a batch through every layer, keys and values written -> the same shape.

    None where the host kernels do not serve the model or the batch.
    """
    if not serves(batch):
        return None
    stack = stack_of(batch.cache)
    if stack is None or x.dtype != model.dtype:
        return None
    call = Call(x.view(batch.rows, batch.count, -1), stack, batch.slots, batch.valid, batch.kv_len, batch.first_row)
    if OP.reason("cpu", call) is not None:
        return None
    out: Tensor = OP.run("cpu", call)
    return out.view(x.shape)


def serves(batch: Batch) -> bool:
    """Whether a batch is of a kind and size that the host kernels were chosen for."""
    tokens = batch.rows * batch.count
    if batch.device.type != "cpu" or tokens > host.MOST_ROWS or torch.is_grad_enabled():
        return False
    if batch.block is not None or batch.at is not None or batch.extra is not None:
        return False  # trees, and prefixes that count more than once
    block = batch.cache.model.blocks[0]
    if not isinstance(block, Block) or not block.host_classes[row_class(tokens)]:
        return False
    return os.environ.get(ENVIRONMENT) in (None, "", "cpu")


def stack_of(cache: KVCache) -> Stack | None:
    """The layers of a cache's model over its keys and values; None for a model of another structure."""
    model = cache.model
    kept = cast("tuple[tuple[Any, ...], Stack | None] | None", cache.steps.get(KEY))
    if kept is not None and kept[0] == addresses(model):
        return kept[1]
    made = make_stack(cache)
    cache.steps[KEY] = (addresses(model), made)
    return made


def addresses(model: Model) -> tuple[Any, ...]:
    """What changes when weights are moved, quantised or written to."""
    found: list[Any] = []
    for block in model.blocks:
        parts = block._modules
        for name in WEIGHTS:
            part = parts.get(name)
            if part is None:
                continue
            tensors = part._parameters if "weight" in part._parameters else part._buffers
            weight = tensors["weight"]
            found += (weight.data_ptr(), weight._version)
    return tuple(found)


def make_stack(cache: KVCache) -> Stack | None:
    """The layers over the keys and values of a cache."""
    model = cache.model
    if not isinstance(model, ARModel) or type(model).run is not ARModel.run:
        return None
    layers = []
    for block, k, v in zip(model.blocks, cache.k, cache.v, strict=True):
        if type(block) is not Block:
            return None
        layers.append(layer_of(block, k, v))
    first = cast(Block, model.blocks[0])
    if any(cast(Block, block).attention_norm.eps != first.attention_norm.eps for block in model.blocks):
        return None
    rotary = None if cache.rotary is None else cache.rotary.contiguous()
    return Stack(tuple(layers), first.n_heads, first.attention_norm.eps, rotary)


def layer_of(block: Block, k_cache: Tensor, v_cache: Tensor) -> Layer:
    """A block over keys and values [rows, slots, Hkv, D]."""
    return Layer(
        weight_of(block.wqkv),
        weight_of(block.wo),
        weight_of(block.w13),
        weight_of(block.w2),
        block.attention_norm.weight.detach(),
        block.ffn_norm.weight.detach(),
        k_cache,
        v_cache,
        norm_of(block.q_norm),
        norm_of(block.k_norm),
        norm_of(block.attention_out_norm),
        norm_of(block.ffn_out_norm),
    )


def weight_of(part: Linear | QuantizedLinear) -> Weight:
    bias = None if part.bias is None else part.bias.detach()
    return Weight(part.weight.detach(), part.scale if isinstance(part, QuantizedLinear) else None, bias)


def norm_of(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight.detach()
