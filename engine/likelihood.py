"""What a model thinks of given tokens: one teacher-forced pass, with the guidance that decoding uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from .conditioning import Condition
from .family import Family
from .sampling import Logits, SamplingParams, processed


def teacher_forced(family: Family, condition: Condition, tokens: Tensor, grid: int, params: SamplingParams) -> Logits:
    """Logits of every token given its condition and the tokens before it.

    Args:
        family: whose model of `grid` is asked.
        condition: of B pictures.
        tokens: int64 [B, n] in raster order, n <= grid*grid.
        grid: side in tokens.
        params: with guidance, the unconditional branch is computed too.

    Returns:
        [B*n, V], picture after picture.

    Raises:
        ValueError: the image stands behind another grid.
    """
    model = family.model(grid)
    if model.layout(grid).start:
        raise ValueError(
            f"the images of family {family.name!r} stand behind another grid in one sequence, without which they have "
            f"no likelihood"
        )
    mask = None if condition.mask is None else condition.mask.to(tokens.device)
    cond = model(condition.features, tokens, grid, mask).flatten(0, 1)
    uncond = None
    if params.guided:
        null = family.null_features(len(tokens)) if condition.null is None else condition.null
        null = null.to(condition.features)
        uncond = model(null, tokens, grid, mask).flatten(0, 1)
    return Logits(cond, uncond, model.dtype)


def log_probabilities(logits: Logits, params: SamplingParams, positions: Sequence[int]) -> Tensor:
    """Log-probabilities float32 [n, V] after guidance and temperature, for training: gradients pass.

    Top-k and top-p are left out, for what they drop has no gradient, and greedy decoding counts as temperature 1.

    Args:
        logits: [n, V].
        params: of decoding.
        positions: raster position of each row.
    """
    smooth = replace(params, top_k=0, top_p=1.0, temperature=params.temperature or 1.0)
    return processed(logits, smooth, positions).log_softmax(dim=-1)


def nll(family: Family, condition: Condition, tokens: Tensor) -> Tensor:
    """Negative log-likelihood float32 [B] of images int64 [B, H, W], mean nats a token: unguided, temperature 1."""
    flat = tokens.flatten(1).to(family.device)
    logits = teacher_forced(family, condition, flat, tokens.shape[-1], SamplingParams())
    losses = F.cross_entropy(logits.cond, flat.flatten(), reduction="none")
    return losses.view(flat.shape).mean(dim=1)
