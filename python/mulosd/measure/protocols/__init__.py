"""The protocols of published figures: images in the layout that each official scorer reads.

Layouts are those of the scorers' own repositories, named in each module; their code and prompts are not part of this
package.
"""

from __future__ import annotations

from pathlib import Path

from .base import Item, Protocol, Score
from .coco_fid import CocoFID
from .dpg import DPG
from .geneval import GenEval
from .hpsv2 import HPSv2
from .run import protocol_table, run_protocol

PROTOCOLS: dict[str, type[Protocol]] = {p.name: p for p in (GenEval, DPG, CocoFID, HPSv2)}


def make_protocol(name: str, prompts: Path, reference: str = "builtin", limit: int | None = None) -> Protocol:
    """A protocol on a user's copy of the official prompts.

    Args:
        name: one of `PROTOCOLS`.
        prompts: the official file or folder.
        reference: of coco-fid: a folder of real images, or "stats:NAME"; "builtin" scores nothing.
        limit: take only so many prompts; None is all, or what the protocol usually takes.

    Raises:
        ValueError: no such protocol, or prompts or a reference that it cannot take.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name].open(prompts, reference, limit)


__all__ = ["PROTOCOLS", "Item", "Protocol", "Score", "make_protocol", "protocol_table", "run_protocol"]
