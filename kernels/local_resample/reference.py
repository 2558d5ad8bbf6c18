"""The specification of `local_resample` in plain torch."""

from __future__ import annotations

from torch import Tensor

from .. import philox
from ..sampling import check_rows, guide, mask_top_k, mask_top_p


def local_resample_reference(
    cond: Tensor,
    uncond: Tensor | None,
    gumbel: Tensor | None,
    cfg_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: Tensor | None,
    position: Tensor | None,
    purpose: int,
) -> Tensor:
    """Tokens int64 [R]; arguments are those of `local_resample`, already checked."""
    logits = guide(cond.float(), None if uncond is None else uncond.float(), cfg_scale)
    if temperature != 0.0:
        if temperature != 1.0:
            logits = logits / temperature
        if 0 < top_k < logits.shape[1]:
            logits = mask_top_k(logits, top_k)
        if top_p < 1.0:
            logits = mask_top_p(logits, top_p)
        if gumbel is not None:
            logits = logits + gumbel
        elif seed is not None and position is not None:
            logits = logits + philox.gumbel(seed, position, logits.shape[1], purpose)
    best, token = logits.max(dim=-1)
    if best.device.type != "cpu":
        return token.where(best.isfinite(), -1)
    check_rows(best)
    return token
