"""The least time that a CPU needs for the forwards of an image, weights read or multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..engine.dtypes import checked_dtype
from ..engine.linear_choice import layers_of
from ..engine.models.quantized import QuantizedLinear
from .ceilings import Ceilings, measured_ceilings

if TYPE_CHECKING:
    from ..engine.decoding.base import Decoder
    from ..engine.engine import Engine
    from ..engine.family import Family
    from ..engine.models.eagle import Model
    from ..engine.stats import GenerationStats

# Roles of forwards that a drafter may have made.
DRAFTED = ("draft", "prefill")


@dataclass(frozen=True)
class Weights:
    """What a forward of some tokens reads once, layers and output head.

    Attributes:
        bytes: of all.
        layers, head: weights that every token, and that the last token, is multiplied by.
        itemsize: bytes of an element of what is multiplied.
    """

    bytes: int
    layers: int
    head: int
    itemsize: int


def weights_of(model: Model, dtype: torch.dtype | None = None) -> Weights:
    """The weights of a model whose layers compute in a type; None is their own."""
    layers = [layer for block in cast("Sequence[nn.Module]", model.blocks) for layer in layers_of(block)]
    output = model.output.weight
    size, own = 0, output.dtype if dtype is None else dtype
    for layer in layers:
        if isinstance(layer, QuantizedLinear):
            size += layer.weight.nbytes + layer.scale.nbytes
        else:
            size += layer.weight.numel() * own.itemsize
    narrowed = any(isinstance(layer, QuantizedLinear) for layer in layers)
    return Weights(
        size + output.nbytes,
        sum(layer.weight.numel() for layer in layers),
        output.numel(),
        1 if narrowed else own.itemsize,
    )


def ceilings_of(engines: Sequence[Engine]) -> Ceilings | None:
    """The ceilings of the CPU that engines run on, read also by buffers of the sizes of their weights; None where one
    of them runs on a GPU."""
    if any(torch.device(engine.family.device).type != "cpu" for engine in engines):
        return None
    # A model that serves several grids counts once; a few sizes say how fast all others are read.
    models = {id(m): m for engine in engines for m in engine.family.models}.values()
    sizes = sorted({weights_of(model).bytes for model in models})
    return measured_ceilings([*sizes[:2], *sizes[-2:]])


def model_of(family: Family, decoder: Decoder, role: str) -> Model:
    """The model that a role's forwards were of; where it may have been one of several, the one with fewest weights."""
    caches = decoder.caches(family)
    targets = [family.model(grid) for grid, drafter in caches if not drafter]
    drafters = [family.eagle_drafter(grid) for grid, drafter in caches if drafter]
    found: list[Model] = [*targets, *drafters] if role in DRAFTED else [*(targets[1:] or targets)]
    return min(found, key=lambda model: weights_of(model).bytes)


def image_floor(
    engine: Engine,
    decoder: Decoder,
    stats: Sequence[GenerationStats],
    ceilings: Ceilings,
    *,
    guided: bool,
    seconds: float,
) -> dict[str, Any]:
    """The least seconds of the forwards of an image, as the row of a decoder states it.

    A forward takes as long as its weights are read, or as long as all of its tokens are multiplied by them, whichever
    is longer: the two may overlap. Attention, sampling, text and pixels are left out.

    Args:
        engine: that drew.
        decoder: resolved.
        stats: of images that were drawn alone.
        ceilings: of the CPU.
        guided: whether every token was fed twice.
        seconds: that an image took.

    Returns:
        `seconds` and their `share` of those that were taken; `weights` and `products`, the seconds of either alone.
    """
    branches = 2 if guided else 1
    weights = products = both = 0.0
    for role in {role for one in stats for role in one.forwards}:
        narrowed = getattr(decoder, "verify_dtype", None) if role == "verify" else None
        held = weights_of(model_of(engine.family, decoder, role), None if narrowed is None else checked_dtype(narrowed))
        forwards = sum(one.forwards.get(role, 0) for one in stats) / len(stats)
        fed = sum(one.fed.get(role, 0) for one in stats) / len(stats)
        read = held.bytes / ceilings.bandwidth(held.bytes)
        # As many tokens in each forward of a role: more in one and fewer in another take no less.
        flops = 2 * branches * (held.layers * fed / forwards + held.head)
        multiplied = flops / ceilings.flops(held.itemsize)
        weights += forwards * read
        products += forwards * multiplied
        both += forwards * max(read, multiplied)
    return {"seconds": both, "share": both / seconds, "weights": weights, "products": products}
