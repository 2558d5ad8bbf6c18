"""Janus and Janus-Pro (arXiv 2501.17811) as transformers saves them: `deepseek-community/Janus-Pro-1B` and `-7B`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioning.janus import JanusConditioner
from ..family import Family
from ..family_config import FamilyConfig
from ..models.language import LanguageConfig, LanguageModel
from ..models.vq import VQ, VQConfig
from ..sampling import SamplingParams
from .llama import layer_sources, sizes, whole
from .repository import Repository, Source, Wanted, fill

# What transformers takes where config.json says nothing.
TEXT = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip
LENGTH = 256


def load(repository: Repository, wanted: Wanted) -> Family:
    """The family of a repository."""
    config = repository.config
    vq, vision = config.get("vq_config") or {}, config.get("vision_config") or {}
    side = whole(vision, "image_size", 384, "vision_config") // whole(vision, "patch_size", 16, "vision_config")
    if wanted.grids not in ((), (side,)):
        raise ValueError(f"{wanted.name} draws {side}x{side} tokens and no other grid, got {list(wanted.grids)}")
    text = sizes(config.get("text_config") or {}, TEXT)
    codes = whole(vq, "num_embeddings", 16384, "vq_config")
    with torch.device("meta"):
        model = LanguageModel(
            LanguageConfig(
                vocab_size=codes, cond_len=wanted.prompt_length or LENGTH, grids=(side,),
                output_dim=whole(vq, "projection_dim", 2048, "vq_config"), **text,
            )
        )  # fmt: skip
        tokenizer = VQ(tokenizer_config(vq))
    fill(repository, model, model_sources(model.config, vq), wanted.dtype)
    fill(repository, tokenizer, tokenizer_sources(tokenizer), wanted.dtype and torch.float32)
    said = repository.optional("generation_config.json")
    conditioner = JanusConditioner.of(repository.folder, model.config.cond_len, said)
    sampling = SamplingParams(cfg_scale=float(said.get("guidance_scale") or 5.0))
    own = FamilyConfig(wanted.name, sampling)
    return Family(own, tokenizer, conditioner, [model], {}, repository.folder)


def model_sources(config: LanguageConfig, vq: Mapping[str, Any]) -> dict[str, Source]:
    """Weights of the language model. What leads a code into it, an embedding and a small network, is run once for all
    codes."""
    if vq.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"vq_config.hidden_act must be 'gelu', got {vq['hidden_act']!r}")
    hidden = whole(vq, "num_hidden_layers", 2, "vq_config") - 1
    parts = ["fc1", *(f"hidden_layers.{i}" for i in range(hidden))]
    aligner = [f"model.generation_aligner.{part}.{kind}" for part in parts for kind in ("weight", "bias")]

    def aligned(codes: Tensor, *layers: Tensor) -> Tensor:
        x = F.linear(codes.float(), layers[0].float(), layers[1].float())
        for weight, bias in zip(layers[2::2], layers[3::2], strict=True):
            x = F.linear(F.gelu(x), weight.float(), bias.float())
        return x

    head = "model.generation_head"
    return {
        "text_embeddings.weight": Source(("model.language_model.embed_tokens.weight",)),
        "tok_embeddings.weight": Source(("model.generation_embeddings.weight", *aligner), aligned),
        **layer_sources(config, "model.language_model."),
        "output_in.weight": Source((f"{head}.proj_out.weight",)),
        "output_in.bias": Source((f"{head}.proj_out.bias",)),
        "output.weight": Source((f"{head}.vision_head.weight",)),
        "output.bias": Source((f"{head}.vision_head.bias",)),
    }


def tokenizer_config(vq: Mapping[str, Any]) -> VQConfig:
    """Sizes of the image tokenizer, which is LlamaGen's VQ-16 under other names."""
    if vq.get("double_latent"):
        raise ValueError("vq_config.double_latent: such tokenizers are not known")
    base = whole(vq, "base_channels", 128, "vq_config")
    blocks = whole(vq, "num_res_blocks", 2, "vq_config")
    return VQConfig(
        codebook_size=whole(vq, "num_embeddings", 16384, "vq_config"),
        code_dim=whole(vq, "embed_dim", 8, "vq_config"),
        z_channels=whole(vq, "latent_channels", 256, "vq_config"),
        channels=tuple(base * m for m in vq.get("channel_multiplier") or (1, 1, 2, 2, 4)),
        encoder_blocks=blocks,
        decoder_blocks=blocks + 1,
    )


RENAMED = (
    (r"^(encoder)\.conv_blocks\.(\d+)\.res\.", r"\1.down.\2.block."),
    (r"^(encoder)\.conv_blocks\.", r"\1.down."),
    (r"^(decoder)\.conv_blocks\.(\d+)\.res\.", r"\1.up.\2.block."),
    (r"^(decoder)\.conv_blocks\.", r"\1.up."),
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
)


def tokenizer_sources(tokenizer: VQ) -> dict[str, Source]:
    """Weights of the image tokenizer."""
    found = {}
    for name in tokenizer.state_dict():
        theirs = name
        for ours, other in RENAMED:
            theirs = re.sub(ours, other, theirs)
        found[name] = Source((f"model.vqmodel.{theirs}",))
    return found
