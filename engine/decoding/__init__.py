"""Decoders: each plans which tokens to feed next and what to do with the logits. A decoder's file is read when it is
first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..registry import Registry
from .base import Decoder, Outcome, Plan
from .spec import DECODERS, decoder_class, decoder_of, parse, spell

if TYPE_CHECKING:
    from .draft_only import DraftOnly
    from .draft_tree import Lantern
    from .eagle import Eagle
    from .jacobi import Jacobi
    from .mulo import MuloSD
    from .product import Product
    from .serial import Serial
    from .zipar import ZipAR

__all__ = [
    "DECODERS",
    "Decoder",
    "DraftOnly",
    "Eagle",
    "Jacobi",
    "Lantern",
    "MuloSD",
    "Outcome",
    "Plan",
    "Product",
    "Serial",
    "ZipAR",
    "decoder_class",
    "decoder_of",
    "parse",
    "spell",
]


def __getattr__(name: str) -> Any:
    lines = {line.partition(":")[2]: line for line in (*DECODERS.lines.values(), ".draft_tree:Lantern")}
    if name in lines:
        return Registry(__name__, lines)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
