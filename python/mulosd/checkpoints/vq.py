"""Released VQ tokenizers of LlamaGen: VQ-16 and VQ-8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.family_config import told
from ..engine.models.tokenizer import Tokenizer
from ..engine.models.vq import VQ, VQConfig
from ..engine.paths import expanded
from .container import Checkpoint, check_matrices, count_parts, fit, read_checkpoint

# Usage counters of training.
IGNORED = ("quantize.codebook_used",)


def load_vq(path: str | Path) -> VQ | Tokenizer:
    """A VQ tokenizer, frozen, in float32 on the CPU: `.encode(image [B, 3, H, W] in [-1, 1]) -> indices [B, h, w]` and
    `.decode(indices) -> image`, which is not clipped.

    Args:
        path: a released file, `tokenizer.safetensors` of a converted folder, or that folder itself.

    Raises:
        ValueError: the file is no VQ tokenizer, is damaged, or tensors are missing, unexpected or mis-shaped.
    """
    file = expanded(path)
    if file.is_dir():
        from ..engine.family import Family

        tokenizer = Family.load(file).tokenizer
        if not isinstance(tokenizer, VQ | Tokenizer):
            raise ValueError(f"{file} holds no VQ tokenizer")
        return tokenizer
    values, tensors = translate_vq(read_checkpoint(file))
    with torch.device("meta"):
        model = VQ(VQConfig.from_dict(values))
    model.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def translate_vq(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a VQ tokenizer, checked against each other."""
    with told(checkpoint.path):
        t = {k: v for k, v in checkpoint.tensors.items() if k not in IGNORED}
        for needed in ("quantize.embedding.weight", "encoder.conv_out.weight", "decoder.conv_out.weight"):
            if needed not in t:
                raise ValueError(
                    f"{checkpoint.path} is no VQ tokenizer of LlamaGen: {needed} is missing "
                    f"(it holds {', '.join(list(t)[:4])} and so on)"
                )
        check_matrices(checkpoint.path, t, ("quantize.embedding.weight",))
        codes, dim = t["quantize.embedding.weight"].shape
        levels = count_parts(checkpoint.path, t, "encoder.conv_blocks.")
        first = [t.get(f"encoder.conv_blocks.{i}.res.0.conv1.weight") for i in range(levels)]
        missing = [f"encoder.conv_blocks.{i}.res.0.conv1.weight" for i, w in enumerate(first) if w is None]
        if missing or not levels:
            raise ValueError(
                f"{checkpoint.path} is no whole VQ tokenizer; missing: {', '.join(missing) or 'its levels'}"
            )
        config = VQConfig(
            codes,
            dim,
            len(t["encoder.conv_out.weight"]),
            tuple(len(w) for w in first if w is not None),
            count_parts(checkpoint.path, t, "encoder.conv_blocks.0.res."),
            count_parts(checkpoint.path, t, "decoder.conv_blocks.0.res."),
        )
        with torch.device("meta"):
            wanted = VQ(config).state_dict()
        fit(checkpoint.path, t, wanted, f"a VQ-{config.patch} tokenizer of {codes} codes")
        return config.to_dict(), t
