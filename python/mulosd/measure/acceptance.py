"""How much of what the target accepts: its own samples, real images, up-sampled ones, and drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..engine.decoding import DraftOnly, MuloSD, Serial
from ..engine.decoding.rejection import verify
from ..engine.likelihood import teacher_forced
from ..engine.upsampling import upsample
from .images import encode
from .rows import Row, rows_of
from .run import Progress, origin
from .statistics import bootstrap_ratio, share_interval
from .table import Column, figure, named, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..engine.engine import Engine

Images = Sequence[tuple[str, Sequence[NDArray[np.uint8]]]]
SOURCES = ("own", "real", "real up-sampled", "draft")


@torch.inference_mode()
def measure_acceptance(
    engine: Engine,
    prompts: Sequence[str],
    decoder: MuloSD,
    *,
    images: Images = (),
    seed: int = 0,
    batch_size: int = 8,
    sources: Sequence[str] = SOURCES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Share of tokens that the target accepts, by where they come from.

    The sources tell apart what is lost where: `own` (the target's samples) is the most to hope for; `real` are images
    encoded on the target's grid; `real up-sampled` adds the up-sampler's errors, `draft` those of the drafter.

    Args:
        engine: a loaded engine.
        prompts: of drafts and own samples; prompt i has seed `seed` + i.
        decoder: whose scale, up-sampler, ZipAR window of drafting, pool and tau are meant.
        images: real ones, as (caption, [image at the drafter's size, at the target's size]), uint8 [S, S, 3].
        seed: of the first prompt.
        batch_size: images drawn together.
        sources: those to judge, out of `SOURCES`.
        progress: called with (source, done, total).

    Returns:
        {"tau", "pool", "scale", "upsampler", "draft_window", "prompts", "pictures", "rows"} and what `origin` tells; a
        row has its `source`, `accepted`, `foreground` and `background` as {"value", "ci95", "tokens"}, and `nll` in
        nats a token as {"value", "ci95"}. Background is the commonest code of an image, foreground the rest.

    Raises:
        ValueError: no prompts, or settings that the family lacks.
    """
    if not prompts:
        raise ValueError("acceptance needs at least one prompt")
    family = engine.family
    decoder = decoder.resolve(family)
    method, target = decoder.upsampler or family.upsampler, family.grids[-1]
    small = family.drafter_grid(decoder.scale or 0)
    seeds = [seed + i for i in range(len(prompts))]

    def drawn(by: DraftOnly | Serial) -> Tensor:
        return engine.generate(prompts, decoder=by, seed=seeds, batch_size=batch_size).tokens

    def encoded(index: int) -> Tensor:
        return encode(family, np.stack([sizes[index] for _, sizes in images]), batch_size)

    captions = [caption for caption, _ in images]
    engine.check_prompts(captions)
    makers: dict[str, tuple[Sequence[str], Callable[[], Tensor]]] = {
        "own": (prompts, lambda: drawn(Serial())),
        "real": (captions, lambda: encoded(1)),
        "real up-sampled": (captions, lambda: upsample(family, encoded(0), target, method)),
        "draft": (prompts, lambda: drawn(DraftOnly(decoder.scale, method, decoder.draft_window))),
    }
    rows = []
    for source, (asked, make) in makers.items():
        # Real images were drawn with none; where conditions are drawn they count on like the others.
        numbers = [seed + i for i in range(len(asked))]
        if asked and source in sources:
            rows.append({"source": source, **judged(engine, asked, numbers, make(), decoder, source, progress)})
    return {
        **origin(engine, family.sampling, seed),
        "tau": decoder.tau,
        "pool": decoder.pool,
        "scale": decoder.scale,
        "drafter_grid": small,
        "upsampler": method,
        "draft_window": decoder.draft_window,
        "prompts": len(prompts),
        "pictures": len(images),
        "rows": rows,
    }


def judged(
    engine: Engine,
    prompts: Sequence[str],
    seeds: Sequence[int],
    tokens: Tensor,
    decoder: MuloSD,
    source: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """The figures of one row, for tokens [B, H, W] of prompts and seeds."""
    family, params = engine.family, engine.family.sampling
    table = family.neighbours(decoder.pool or 1)
    accepted, nll = [], []
    flat = tokens.flatten(1).to(family.device)
    for i, prompt in enumerate(prompts):
        # One at a time: the logits of a large grid and vocabulary are hundreds of megabytes.
        condition = family.condition([prompt], [seeds[i]])
        logits = teacher_forced(family, condition, flat[i : i + 1], family.grids[-1], params)
        accepted.append(verify(logits, flat[i], table, decoder.tau or 0.0, params).accept)
        nll.append(float(F.cross_entropy(logits.cond.float(), flat[i])))
        if progress is not None:
            progress(source, i + 1, len(prompts))
    stands = torch.stack(accepted).cpu().numpy()
    front = (flat != flat.mode(dim=1).values[:, None]).cpu().numpy()
    return {
        "accepted": share(stands, np.ones_like(stands)),
        "foreground": share(stands, front),
        "background": share(stands, ~front),
        "nll": {"value": float(np.mean(nll)), "ci95": list(bootstrap_ratio(nll, np.ones(len(nll))))},
    }


def share(stands: NDArray[np.bool_], among: NDArray[np.bool_]) -> dict[str, Any]:
    """Share of what stands among some tokens, both [B, N], with its interval over images; None for no tokens."""
    found, asked = (stands & among).sum(axis=1), among.sum(axis=1)
    if not asked.sum():
        return {"value": None, "ci95": None, "tokens": 0}
    low, high = share_interval(found, asked)
    return {"value": float(found.sum() / asked.sum()), "ci95": [low, high], "tokens": int(asked.sum())}


def rejected(heading: str, key: str, digits: int = 2, interval: bool = True) -> Column:
    """A column of the share of tokens that are not accepted, in per cent."""

    def cell(row: Row) -> str | None:
        found = row.figure(key)
        if found is None:
            return None
        # What is least accepted is most rejected.
        value, low, high = (f"{100 * (1 - x):.{digits}f}" for x in (found.value, found.high, found.low))
        return f"{value} ({low}-{high})" if interval else value

    return Column(heading, cell)


def acceptance_table(report: dict[str, Any]) -> Table:
    """The rows of a report as a table."""
    rows = rows_of(report)
    return table(
        rows,
        [
            named([row.what["source"] for row in rows], rows, "source"),
            rejected("rejected", "accepted"),
            rejected("foreground", "foreground", interval=False),
            rejected("background", "background", interval=False),
            figure("NLL", "nll", "{value:.3f} ({low:.3f}-{high:.3f})"),
        ],
        f"{report['family']}: tau {report['tau']:.3g}, pool {report['pool']}, scale {report['scale']}, "
        f"{report['upsampler']} up-sampler",
        f"rejected tokens, % (95 % interval over images), NLL in nats a token; {report['prompts']} prompts, "
        f"{report['pictures']} real images; background: the commonest code of an image",
    )
