"""Serial local resampling: chosen positions in raster order, one forward each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import Logits, Noise, SamplingParams, sample
from ..session import Session


def resample_raster(
    session: Session,
    tokens: Tensor,
    plan: list[Tensor],
    logits: Logits,
    start: int,
    noise: Noise,
    params: SamplingParams,
) -> None:
    """Resample the planned positions of each request in raster order; `tokens` [B, N] changes in place.

    The first position of a request is drawn from the verify pass itself: all tokens before it were accepted, so its
    logits are exact. Each further position u feeds token u-1; when the position resampled before it is not u-1, that
    one is fed along so that its new key and value are in place. The last one of a request is left unfed.

    Args:
        session: the target; its cache holds the candidates.
        plan: ascending raster positions, int64 [n_b] for each request.
        logits: [B, n, V] of the verify pass, the first row being position `start`.
    """
    steps = max((len(p) for p in plan), default=0)
    if not steps:
        return
    device = tokens.device
    row = torch.arange(len(plan), device=device)
    # A request that is done repeats its last position: it feeds and draws the same token again, which changes nothing.
    padded = torch.stack([torch.cat([p, (p[-1:] if len(p) else p.new_zeros(1)).expand(steps - len(p))]) for p in plan])
    active = torch.tensor([len(p) for p in plan], device=device)
    gumbel = noise.rows(padded)
    for step in range(steps):
        here = padded[:, step]
        drawing = step < active
        if step == 0:
            index = (here - start).clamp(min=0)
            fed = Logits(
                logits.cond[row, index][:, None],
                None if logits.uncond is None else logits.uncond[row, index][:, None],
            )
        else:
            before = padded[:, step - 1]
            previous = torch.where(drawing, here - 1, before)
            fed = _feed(session, tokens, before, previous, row)
        drawn = sample(fed, gumbel[:, step : step + 1], params)[:, 0]
        tokens[row, here] = torch.where(drawing, drawn, tokens[row, here])
        session.recorder.report("resample", step + 1, steps)


def _feed(session: Session, tokens: Tensor, before: Tensor, previous: Tensor, row: Tensor) -> Logits:
    """Feed `previous` and, where it is another position, `before`; logits [B, 1, V] after `previous`."""
    if torch.equal(before, previous):
        first = int(previous[0])
        shared = bool((previous == first).all())
        at = first if shared else previous[:, None]
        fed = session.feed(tokens[row, previous][:, None], at, role="resample", logits="last")
    else:
        positions = torch.stack([before, previous], dim=1)
        fed = session.feed(tokens.gather(1, positions), positions, role="resample", logits="last")
    if fed is None:
        raise RuntimeError("feed returned no logits")
    return fed
