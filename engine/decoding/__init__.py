"""Decoders: each plans which tokens to feed next and what to do with the logits."""

from .base import Batch, Decoder, Outcome
from .draft_only import DraftOnly
from .mulo import MuloSD
from .serial import Serial

__all__ = ["Batch", "Decoder", "DraftOnly", "MuloSD", "Outcome", "Serial"]
