"""Kinds of models by the name that family.json gives them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..registry import Registry


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


# One line a model: the class by the name that family.json gives its kind. Its `config_class` reads the rest.
AR_MODELS = Registry(
    "mulosd.engine.models",
    {
        "transformer": ".transformer:Transformer",
        "llamagen": ".llamagen:LlamaGen",
        "ar-dtok": ".ar_dtok:ARDTok",
        "language": ".language:LanguageModel",
    },
)
TOKENIZERS = Registry(
    "mulosd.engine.models",
    {
        "tokenizer": ".tokenizer:Tokenizer",
        "vq": ".vq:VQ",
        "emu3-vq": ".emu3_vq:Emu3VQ",
        "semantic": ".semantic:SemanticCodes",
    },
)


def kind_of(module: object, kinds: Registry) -> str:
    """The name of a module's kind."""
    for name in kinds:
        if type(module) is kinds[name]:
            return name
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    raise ValueError(f"{kind} is no registered kind; there are {', '.join(kinds)}, and a line makes one more")


def build(kinds: Registry, kind: str, values: dict[str, Any]) -> Any:
    """A module without weights yet, of a kind and the configuration that family.json holds.

    Args:
        kinds: `AR_MODELS` or `TOKENIZERS`.
        kind: one of its names.
        values: what `config.to_dict()` gave.
    """
    cls = kinds[kind]
    return cls(cls.config_class.from_dict(values))
