"""Kinds of models by the name that family.json gives them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from .ar_dtok import ARDTok, ARDTokConfig
from .ar_model import ARModel
from .llamagen import LlamaGen, LlamaGenConfig
from .tokenizer import Tokenizer, TokenizerConfig
from .transformer import Transformer, TransformerConfig
from .vq import VQ, VQConfig


class TokenizerConfigLike(Protocol):
    """Sizes of an image tokenizer."""

    @property
    def codebook_size(self) -> int: ...
    @property
    def code_dim(self) -> int: ...
    @property
    def patch(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...


class ImageTokenizer(Protocol):
    """What the engine asks of an image tokenizer; a `torch.nn.Module` besides."""

    @property
    def config(self) -> TokenizerConfigLike: ...
    @property
    def codebook(self) -> Tensor: ...
    def latents(self, image: Tensor) -> Tensor: ...
    def encode(self, image: Tensor) -> Tensor: ...
    def decode(self, indices: Tensor) -> Tensor: ...
    def decode_latents(self, z: Tensor) -> Tensor: ...


AR_MODELS: dict[str, tuple[type[ARModel], Any]] = {
    "transformer": (Transformer, TransformerConfig),
    "llamagen": (LlamaGen, LlamaGenConfig),
    "ar-dtok": (ARDTok, ARDTokConfig),
}
TOKENIZERS: dict[str, tuple[type[torch.nn.Module], Any]] = {
    "tokenizer": (Tokenizer, TokenizerConfig),
    "vq": (VQ, VQConfig),
}


def kind_of(module: object, kinds: dict[str, tuple[Any, Any]]) -> str:
    """The name of a module's kind."""
    return next(name for name, (cls, _) in kinds.items() if type(module) is cls)


def build_ar(kind: str, values: dict[str, Any]) -> ARModel:
    """An AR model without weights yet, of a kind and the configuration that family.json holds."""
    cls, config = AR_MODELS[kind]
    return cls(config.from_dict(values))
