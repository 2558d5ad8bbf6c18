"""Conditions of Tar (arXiv 2506.18898): a language model writes TA-Tok ids, whose decoder turns them into features."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..models.ar_dtok import PREFIXES
from ..models.ta_tok import TATok, TATokConfig
from .base import Condition, Conditioner
from .pretrained import load_pretrained

SYSTEM = "You are a helpful assistant."


class DialectConditioner(Conditioner):
    """Prompts through a Qwen2 of the transformers library that writes `<I123>` tokens, or precomputed ids or features.

    What it writes is drawn for each image, from the image's own seed, at the temperature of Tar's script (1), whatever
    that of the image is. Images of one prompt therefore differ in their condition too.

    Args:
        length: features a picture, 729, 169 or 81.
        ta_tok: ids to features.
        llm: folder or repository of the language model, or None when only precomputed conditions are used.
    """

    kind: ClassVar[str] = "dialect"
    example = "a photo of a cat"

    def __init__(self, length: int, ta_tok: TATok, llm: str | None = None) -> None:
        super().__init__()
        if length not in PREFIXES:
            raise ValueError(f"Tar conditions have {', '.join(map(str, PREFIXES))} features, got {length}")
        self.length, self.ta_tok, self.llm = length, ta_tok, llm
        self.weights = {"ta_tok": ta_tok}
        self._loaded: tuple[Any, Any] | None = None

    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        if self.llm is None:
            raise ValueError(
                "this family has no language model: give precomputed TA-Tok ids or features (--features FILE), or "
                "convert it again with --llm csuhan/Tar-1.5B or the folder of one"
            )
        if seeds is None or len(seeds) != len(prompts):
            raise ValueError(
                f"the language model draws a condition for each image: {len(prompts)} prompts need as many seeds, got "
                f"{'none' if seeds is None else len(seeds)}; give those that the images were drawn with"
            )
        return self.from_ids(torch.cat([self.write(p, s) for p, s in zip(prompts, seeds, strict=True)]))

    def write(self, prompt: str, seed: int) -> Tensor:
        """TA-Tok ids int64 [1, length] that the language model writes for a prompt and a seed of 0 to 2**63 - 1."""
        if self._loaded is None:
            self._loaded = load_pretrained(str(self.llm), "Qwen2ForCausalLM", self.device, self.dtype)
        tokenizer, model = self._loaded
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # Asks for one of three lengths; the same names as in training.
        text += f"<im_start><S{PREFIXES.index(self.length)}>"
        inputs = tokenizer(text, return_tensors="pt").to(self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(folded(seed))
            written = model.generate(
                **inputs, max_new_tokens=self.length, do_sample=True, temperature=1.0, top_p=0.95, top_k=1200
            )
        answer = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :])[0]
        return self.parse(answer)

    def parse(self, answer: str) -> Tensor:
        """Ids int64 [1, length] of an answer, cut or filled up with 0; ValueError when it holds none."""
        ids = [int(i) for i in re.findall(r"<I(\d+)>", answer)][: self.length]
        if not ids:
            raise ValueError(f"{self.llm} wrote no TA-Tok ids (<I0> and so on): it is no language model of Tar")
        return torch.tensor([ids + [0] * (self.length - len(ids))])

    def from_ids(self, ids: Tensor) -> Condition:
        """The condition of TA-Tok ids int64 [B, length]."""
        return Condition(self.ta_tok(ids.to(self.device)).float())

    def precomputed(self, array: Tensor) -> Condition:
        """Ids [B, length] of an integer type, or features [B, length, dim]."""
        dim = self.ta_tok.config.dim
        if not array.is_floating_point() and array.dim() == 2 and array.shape[1] == self.length:
            return self.from_ids(array.long())
        if array.is_floating_point() and array.dim() == 3 and array.shape[1:] == (self.length, dim):
            return Condition(array.float().to(self.device))
        side = math.isqrt(self.length)
        raise ValueError(
            f"precomputed conditions of this family are integer TA-Tok ids [B, {self.length}] ({side}x{side}) or "
            f"features [B, {self.length}, {dim}], got {array.dtype} {list(array.shape)}"
        )

    def null(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.length, self.ta_tok.config.dim, device=self.device)

    def to_dict(self) -> dict[str, Any]:
        return {"length": self.length, "ta_tok": self.ta_tok.config.to_dict(), "llm": self.llm}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DialectConditioner:
        ta_tok = TATok(TATokConfig.from_dict(values["ta_tok"]))
        return cls(values["length"], ta_tok, values["llm"])


def folded(seed: int) -> int:
    """A seed in the 32 bits that torch's generator on a CPU takes; smaller ones stay what they are."""
    low, high = seed & 0xFFFFFFFF, seed >> 32
    return low ^ (high * 0x9E3779B1 & 0xFFFFFFFF)
