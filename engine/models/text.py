"""The text side: a phrase vocabulary and a small bidirectional encoder trained along with the AR model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Block, RMSNorm, run_layers, whole

PAD, END, NULL = 0, 1, 2
SPECIALS = ("<pad>", "<end>", "<null>")


@dataclass(frozen=True)
class Vocabulary:
    """Phrases that a family knows. Several phrases may share one id (plural, synonym); `ignore` lists filler words.

    Args:
        phrases: phrase (lower case, words separated by one space) -> id, ids from 3 on.
        ignore: words that carry no meaning for the family ("a", "on", "and").
    """

    phrases: dict[str, int]
    ignore: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        bad = [p for p, i in self.phrases.items() if i < len(SPECIALS)]
        if bad:
            raise ValueError(f"phrase ids below {len(SPECIALS)} are reserved, used by {bad}")

    @property
    def size(self) -> int:
        """Number of ids, specials included."""
        return max(self.phrases.values(), default=len(SPECIALS) - 1) + 1

    def parse(self, prompt: str) -> tuple[list[int], list[str]]:
        """Split a prompt into phrase ids by longest match; returns (ids, unknown words)."""
        words = [w for w in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", prompt.lower()) if w not in self.ignore]
        longest = max((p.count(" ") + 1 for p in self.phrases), default=1)
        ids: list[int] = []
        unknown: list[str] = []
        at = 0
        while at < len(words):
            for n in range(min(longest, len(words) - at), 0, -1):
                found = self.phrases.get(" ".join(words[at : at + n]))
                if found is not None:
                    ids.append(found)
                    at += n
                    break
            else:
                unknown.append(words[at])
                at += 1
        return ids, unknown

    def encode(self, prompt: str, length: int) -> list[int]:
        """Ids of a prompt, ended and padded to `length`; ValueError when it is too long."""
        ids, _ = self.parse(prompt)
        if len(ids) + 1 > length:
            raise ValueError(
                f"the prompt has {len(ids)} known phrases, this family takes at most {length - 1}; shorten it"
            )
        return ids + [END] + [PAD] * (length - 1 - len(ids))

    def null(self, length: int) -> list[int]:
        """Ids of the unconditional branch."""
        return [NULL] * length

    def to_dict(self) -> dict[str, Any]:
        return {"phrases": self.phrases, "ignore": sorted(self.ignore)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Vocabulary:
        return cls(dict(values["phrases"]), frozenset(values["ignore"]))


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the text encoder; `length` is the number of prefix slots that it fills."""

    vocab_size: int
    length: int
    dim: int = 256
    n_layers: int = 1
    n_heads: int = 4
    ffn_dim: int = 512

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TextEncoderConfig:
        return cls(**values)


class TextEncoder(nn.Module):
    """Phrase ids [B, T] -> features [B, T, dim], bidirectional over the whole caption."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.position = nn.Parameter(torch.randn(c.length, c.dim) * 0.02)
        self.blocks = nn.ModuleList(
            Block(c.dim, c.n_heads, c.dim // c.n_heads, c.ffn_dim, 1e-5) for _ in range(c.n_layers)
        )
        self.norm = RMSNorm(c.dim, 1e-5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.embedding.weight, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position
        return self.norm(run_layers(self.blocks, x, whole(causal=False)))
