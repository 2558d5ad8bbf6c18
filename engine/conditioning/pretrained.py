"""Tokenizer and model of the transformers library, from a folder or a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..paths import expanded


def load_pretrained(source: str, kind: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and model of class `kind` of transformers.

    Args:
        source: a folder, or the name of a repository (fetched once by huggingface_hub, which keeps it).
        kind: "T5EncoderModel" or "AutoModelForCausalLM".

    Raises:
        ImportError: transformers is not installed.
        ValueError: the folder or repository is not there, cannot be reached or is of another kind.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{source} runs through transformers: pip install 'mulosd[text]'; or give precomputed features"
        ) from error
    if source.startswith("~"):
        source = str(expanded(source))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = getattr(transformers, kind).from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        where = "is not what is needed" if Path(source).is_dir() else "is no folder here and cannot be fetched"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} {where} ({reason}): give the folder of a copy, or precomputed features (--features FILE)"
        ) from error
    return tokenizer, model.eval().requires_grad_(False).to(device)
