"""Decoders: each plans which tokens to feed next and what to do with the logits."""

from .acceptance import Lantern
from .base import Decoder, Outcome, Plan
from .draft_only import DraftOnly
from .eagle import Eagle
from .jacobi import Jacobi
from .mulo import MuloSD
from .serial import Serial
from .spec import parse
from .zipar import ZipAR

__all__ = [
    "Decoder",
    "DraftOnly",
    "Eagle",
    "Jacobi",
    "Lantern",
    "MuloSD",
    "Outcome",
    "Plan",
    "Serial",
    "ZipAR",
    "parse",
]
