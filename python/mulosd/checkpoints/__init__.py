"""Checkpoints of other projects: LlamaGen (arXiv 2406.06525) and Tar (arXiv 2506.18898)."""

from .ar import load_ar, logits
from .ta_tok import load_ta_tok
from .vq import load_vq

__all__ = ["load_ar", "load_ta_tok", "load_vq", "logits"]
