"""Tokenizer and model of the transformers library, from a folder or a repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..paths import expanded

# The `model_type` of config.json that a class is loaded from. Tar's own type is not known to transformers, so that
# "AutoModelForCausalLM" refuses it; its scripts name the class.
TYPES = {"T5EncoderModel": ("t5",), "Qwen2ForCausalLM": ("qwen2", "llava_qwen")}


def load_pretrained(source: str, kind: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and model of class `kind` of transformers.

    Args:
        source: a folder, or the name of a repository (fetched once by huggingface_hub, which keeps it).
        kind: one of `TYPES`.

    Raises:
        ImportError: transformers is not installed.
        ValueError: the folder or repository is not there, cannot be reached, is of another kind or lacks weights.
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
        described, _ = transformers.PretrainedConfig.get_config_dict(source)
        found = described.get("model_type")
        if described and found not in TYPES[kind]:
            # transformers would build it all the same, of the class's usual sizes and random numbers.
            raise ValueError(f"its config.json is of model_type {found!r}; {kind} takes {' or '.join(TYPES[kind])}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model, loaded = getattr(transformers, kind).from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        where = "is not what is needed" if Path(source).is_dir() else "is no folder here and cannot be fetched"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} {where} ({reason}): give the folder of a copy, or precomputed features (--features FILE)"
        ) from error
    if loaded["missing_keys"]:
        # transformers would go on with random numbers in their place.
        raise ValueError(f"{source} is no whole {kind}: it lacks {', '.join(sorted(loaded['missing_keys'])[:4])}")
    return tokenizer, model.eval().requires_grad_(False).to(device)
