"""The autoregressive stage of GLM-Image: the folder `vision_language_encoder` of `zai-org/GLM-Image`, or that alone."""

from __future__ import annotations

import torch

from ..conditioning.glm_image import GlmImageConditioner
from ..family import Family
from ..family_config import FamilyConfig
from ..models.language import LanguageConfig, LanguageModel
from ..models.semantic import SemanticCodes, SemanticConfig
from ..sampling import SamplingParams
from .llama import layer_sources, rotation, sizes, whole
from .repository import PROCESSOR, Repository, Source, Wanted, fill

# What transformers takes where config.json says nothing.
TEXT = {
    "vocab_size": 168064, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "attention_bias": True,
}  # fmt: skip
SECTIONS = (8, 12, 12)
LENGTH = 1024
GRID = 32  # 1,024 px
FIRST = 16  # side of the grid before that of a square image, whatever its size


def load(repository: Repository, wanted: Wanted) -> Family:
    """The family of a repository."""
    config = repository.config
    text, vq = config.get("text_config") or {}, config.get("vq_config") or {}
    codes = whole(vq, "num_embeddings", 16384, "vq_config")
    if config.get("image_start_token_id", codes) < codes:
        raise ValueError(f"{repository.folder}: image codes must be the first {codes} tokens of the vocabulary")
    with torch.device("meta"):
        model = LanguageModel(
            LanguageConfig(
                vocab_size=codes, cond_len=wanted.prompt_length or LENGTH, grids=wanted.grids or (GRID,),
                sandwich=True, sections=rotation(text, TEXT["rope_theta"], "text_config")["sections"] or SECTIONS,
                first_grid=wanted.first_grid or FIRST, **sizes(text, TEXT),
            )
        )  # fmt: skip
        tokenizer = SemanticCodes(SemanticConfig(codes, whole(vq, "embed_dim", 2048, "vq_config")))
    fill(repository, model, model_sources(model.config), wanted.dtype)
    quantizer = {"quantize.weight": Source(("model.vqmodel.quantize.embedding.weight",))}
    fill(repository, tokenizer, quantizer, wanted.dtype and torch.float32)
    beside = repository.folder.parent / PROCESSOR
    source = beside if beside.is_dir() else repository.folder
    conditioner = GlmImageConditioner(source, model.config.cond_len, model.config.grids)
    said = repository.optional("generation_config.json")
    top_k = int(said.get("top_k") or 0)
    sampling = SamplingParams(
        temperature=float(said.get("temperature") or 0.9),
        top_p=float(said.get("top_p") or 0.75),
        top_k=0 if top_k >= codes else top_k,
    )
    own = FamilyConfig(wanted.name, sampling, upsampler="nearest")
    return Family(own, tokenizer, conditioner, [model], {}, repository.folder)


def model_sources(config: LanguageConfig) -> dict[str, Source]:
    """Weights of the language model; image codes are the first tokens of its vocabulary and of its output."""
    embedding, codes = "model.language_model.embed_tokens.weight", config.vocab_size
    return {
        "text_embeddings.weight": Source((embedding,)),
        "tok_embeddings.weight": Source((embedding,), lambda table: table[:codes]),
        **layer_sources(config, "model.language_model.", fused_gate=True),
        "output.weight": Source(("lm_head.weight",), lambda table: table[:codes]),
    }
