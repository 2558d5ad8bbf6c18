"""Emu3-Gen (arXiv 2409.18869) as transformers saves it: `BAAI/Emu3-Gen-hf`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..conditioning.emu3 import Emu3Conditioner
from ..family import Family
from ..family_config import FamilyConfig
from ..models.emu3_vq import Emu3VQ, Emu3VQConfig
from ..models.language import LanguageConfig, LanguageModel
from ..sampling import SamplingParams
from .llama import layer_sources, sizes, whole
from .repository import Repository, Source, Wanted, fill

# What transformers takes where config.json says nothing.
TEXT = {
    "vocab_size": 184622, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
}  # fmt: skip
LENGTH = 256
GRID = 90  # 720 px, what the model was trained for
VISUAL = re.compile(r"<\|visual token (\d+)\|>")
ROW_END = "<|extra_200|>"


def load(repository: Repository, wanted: Wanted) -> Family:
    """The family of a repository."""
    config = repository.config
    vq = config.get("vq_config") or {}
    codes, row_end = visual_ids(config.get("vocabulary_map"), repository)
    tokens = tokenizer_config(vq)
    if len(codes) != tokens.codebook_size:
        raise ValueError(
            f"{repository.folder}: the vocabulary has {len(codes)} visual tokens, the tokenizer {tokens.codebook_size} "
            f"codes: they do not belong together"
        )
    with torch.device("meta"):
        model = LanguageModel(
            LanguageConfig(
                vocab_size=len(codes), cond_len=wanted.prompt_length or LENGTH, grids=wanted.grids or (GRID,),
                row_ends=True, **sizes(config.get("text_config") or {}, TEXT),
            )
        )  # fmt: skip
        tokenizer = Emu3VQ(tokens)
    fill(repository, model, model_sources(model.config, repository, codes, row_end), wanted.dtype)
    within = repository.prefix("quantize.embedding.weight", "model.vqmodel.", "vqmodel.")
    named = {name: Source((within + name,)) for name in tokenizer.state_dict()}
    fill(repository, tokenizer, named, wanted.dtype and torch.float32)
    conditioner = Emu3Conditioner(repository.folder, model.config.cond_len, model.config.grids, tokens.patch)
    # As the model's own card samples.
    own = FamilyConfig(wanted.name, SamplingParams(cfg_scale=3.0, top_k=2048), upsampler="pixel")
    return Family(own, tokenizer, conditioner, [model], {}, repository.folder)


def visual_ids(vocabulary: Any, repository: Repository) -> tuple[list[int], int]:
    """Token ids of image codes, by code, and of the end of a row; ValueError when config.json does not name them."""
    if not isinstance(vocabulary, Mapping) or not isinstance(vocabulary.get(ROW_END), int):
        raise ValueError(f"{repository.folder}: config.json must hold a vocabulary_map with {ROW_END}")
    found = {int(m[1]): value for name, value in vocabulary.items() if (m := VISUAL.fullmatch(name))}
    if not found or sorted(found) != list(range(len(found))) or not all(isinstance(v, int) for v in found.values()):
        raise ValueError(f"{repository.folder}: vocabulary_map must name the visual tokens from 0 on without gaps")
    return [found[code] for code in range(len(found))], vocabulary[ROW_END]


def model_sources(config: LanguageConfig, repository: Repository, codes: list[int], row_end: int) -> dict[str, Source]:
    """Weights of the language model: of the output the rows of image codes alone. Older files have other prefixes."""
    within = repository.prefix("embed_tokens.weight", "model.text_model.", "text_model.model.")
    head = repository.prefix("lm_head.weight", "", "text_model.")
    embedding = f"{within}embed_tokens.weight"
    rows = torch.tensor(codes)
    return {
        "text_embeddings.weight": Source((embedding,)),
        "tok_embeddings.weight": Source((embedding,), lambda table: taken(table, torch.tensor([*codes, row_end]))),
        **layer_sources(config, within),
        "output.weight": Source((f"{head}lm_head.weight",), lambda table: taken(table, rows)),
    }


def taken(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of a table, which may lie on the meta device."""
    return table[rows.to(table.device)]


def tokenizer_config(vq: Mapping[str, Any]) -> Emu3VQConfig:
    """Sizes of the image tokenizer."""
    if vq.get("double_latent"):
        raise ValueError("vq_config.double_latent: such tokenizers are not known")
    base = whole(vq, "base_channels", 256, "vq_config")
    attention = vq.get("attn_resolutions")
    return Emu3VQConfig(
        codebook_size=whole(vq, "codebook_size", 32768, "vq_config"),
        code_dim=whole(vq, "embed_dim", 4, "vq_config"),
        z_channels=whole(vq, "latent_channels", 4, "vq_config"),
        channels=tuple(base * m for m in vq.get("channel_multiplier") or (1, 2, 2, 4)),
        blocks=whole(vq, "num_res_blocks", 2, "vq_config"),
        attention=tuple((3,) if attention is None else attention),
        heads=whole(vq, "num_attention_heads", 1, "vq_config"),
        frames=whole(vq, "temporal_downsample_factor", 4, "vq_config"),
    )
