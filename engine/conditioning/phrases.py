"""The bundled way: phrases of a closed vocabulary, and a small text encoder trained along with the AR model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.text import TextEncoder, TextEncoderConfig, Vocabulary
from .base import Condition, Conditioner
from .limit import ObjectLimit


class PhraseConditioner(Conditioner):
    """Known phrases of a prompt through a text encoder.

    Unknown words are ignored, with a warning; a prompt of which nothing is known is refused.

    Args:
        vocabulary: the phrases.
        text: the encoder.
        limit: the most objects of an image, where the family has learned no more: prompts that ask for more are warned
            about.
    """

    kind: ClassVar[str] = "phrases"

    def __init__(self, vocabulary: Vocabulary, text: TextEncoder, limit: ObjectLimit | None = None) -> None:
        super().__init__()
        self.vocabulary, self.text, self.limit = vocabulary, text, limit
        self.weights = {"text": text}
        self.example = min(vocabulary.phrases, key=len, default=self.example)

    def check(self, prompt: str) -> str | None:
        known, unknown = self.vocabulary.parse(prompt)
        self.vocabulary.encode(prompt, self.text.config.length)
        if not known:
            raise ValueError(self._nothing(prompt, unknown))
        said = []
        if unknown:
            words = ", ".join(repr(w) for w in dict.fromkeys(unknown))
            near = self._near(unknown)
            said.append(f"does not know {words} in {prompt!r}: ignored{near}; `mulosd info` lists its words")
        if self.limit is not None and (too_many := self.limit.warning(self.vocabulary, prompt)) is not None:
            said.append(too_many)
        return "; it ".join(said) or None

    def _nothing(self, prompt: str, unknown: list[str]) -> str:
        """The message for a prompt that asks for nothing that this family can draw."""
        if not any(letter.isalnum() for letter in prompt):
            what = "holds no word"
        elif not unknown:
            what = "has only filler words"
        else:
            what = "has no word that this family knows"
        near = self._near(unknown) or f", such as {self.example!r}"
        return f"the prompt {prompt!r} {what}; say what to draw in its words{near} (`mulosd info` lists them)"

    def _near(self, words: Iterable[str]) -> str:
        """The known phrases that look most like unknown words, for messages."""
        found = [near for word in dict.fromkeys(words) for near in get_close_matches(word, self.vocabulary.phrases)]
        return f" (near: {', '.join(map(repr, dict.fromkeys(found)))})" if found else ""

    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        ids = [self.vocabulary.encode(p, self.text.config.length) for p in prompts]
        return Condition(self._encode(ids))

    def null(self, batch: int) -> Tensor:
        return self._encode([self.vocabulary.null(self.text.config.length)]).expand(batch, -1, -1)

    def _encode(self, ids: list[list[int]]) -> Tensor:
        features: Tensor = self.text(torch.tensor(ids, device=self.device))
        return features

    def to_dict(self) -> dict[str, Any]:
        limit = {} if self.limit is None else {"limit": self.limit.to_dict()}
        return {"text": dict(self.text.config.__dict__), "vocabulary": self.vocabulary.to_dict(), **limit}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PhraseConditioner:
        text = TextEncoder(TextEncoderConfig.from_dict(values["text"]))
        limit = None if values.get("limit") is None else ObjectLimit.from_dict(values["limit"])
        return cls(Vocabulary.from_dict(values["vocabulary"]), text, limit)
