"""Caption conditions of LlamaGen: features of the flan-t5-xl encoder, padded on the left (arXiv 2406.06525)."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Condition, Conditioner
from .pretrained import load_pretrained

ENCODER = "google/flan-t5-xl"


class CaptionConditioner(Conditioner):
    """Captions through a T5 encoder of the transformers library, or precomputed features.

    Args:
        length: prefix slots.
        dim: width of the features.
        encoder: a folder, or the name of a repository.
    """

    kind: ClassVar[str] = "captions"
    example = "a photo of a cat"

    def __init__(self, length: int = 120, dim: int = 2048, encoder: str = ENCODER) -> None:
        super().__init__()
        self.length, self.dim, self.encoder = length, dim, encoder
        self._loaded: tuple[Any, Any] | None = None

    def condition(self, prompts: list[str], seeds: Sequence[int] | None = None) -> Condition:
        if self._loaded is None:
            self._loaded = load_pretrained(self.encoder, "T5EncoderModel", self.device, self.dtype)
            if self._loaded[1].config.d_model != self.dim:
                raise ValueError(
                    f"{self.encoder} gives features of width {self._loaded[1].config.d_model}, this family takes "
                    f"{self.dim}: use {ENCODER} (mulosd convert --text-encoder)"
                )
        tokenizer, model = self._loaded
        # The models were trained on captions that had been cleaned twice.
        captions = [clean(clean(p)) for p in prompts]
        batch = tokenizer(
            captions,
            max_length=self.length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        mask = batch["attention_mask"]
        states = model(batch["input_ids"].to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        rows = [states[i, : int(mask[i].sum())] for i in range(len(prompts))]
        return self.padded(rows)

    def padded(self, rows: list[Tensor]) -> Condition:
        """Features [n, dim] of each caption, n <= length, moved to the right behind zeros, with their mask."""
        features = torch.zeros(len(rows), self.length, self.dim, device=self.device)
        mask = torch.zeros(len(rows), self.length, dtype=torch.bool)
        for i, row in enumerate(rows):
            if not 1 <= len(row) <= self.length or row.shape[-1] != self.dim:
                raise ValueError(
                    f"caption features must be [n, {self.dim}] with 1 <= n <= {self.length}, got {list(row.shape)}"
                )
            features[i, -len(row) :] = row.to(features)
            mask[i, -len(row) :] = True
        return Condition(features, mask)

    def precomputed(self, array: Tensor) -> Condition:
        """Features [B, n, dim] without padding, or with rows of zeros as padding on either side."""
        if array.dim() != 3:
            raise ValueError(f"caption features must be [B, n, {self.dim}], got {list(array.shape)}")
        rows = [row[row.any(dim=-1)] for row in array.float()]
        if any(not len(row) for row in rows):
            raise ValueError("caption features hold a caption of zeros alone; every caption has at least its end token")
        return self.padded(rows)

    def null(self, batch: int) -> Tensor:
        # Zeros are no caption: the model puts its own learned null caption in their place.
        return torch.zeros(batch, self.length, self.dim, device=self.device)

    def to_dict(self) -> dict[str, Any]:
        return {"length": self.length, "dim": self.dim, "encoder": self.encoder}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionConditioner:
        return cls(**values)


PUNCTUATION = {"«»“”„‟❝❞": '"', "‘’‚‛´`": "'", "‐‑‒–—―−": "-", "…": "..."}
TABLE = str.maketrans({sign: plain for signs, plain in PUNCTUATION.items() for sign in signs})


def clean(caption: str) -> str:
    """A caption as the text encoder of LlamaGen saw captions: lower case, no markup, addresses or file names.

    Covers what occurs in prompts: entities, tags, web and mail addresses, @-names, file names, #ids, typographic signs
    and repeated punctuation.
    """
    text = html.unescape(html.unescape(unicodedata.normalize("NFKC", caption))).lower().strip()
    text = text.replace("<person>", "person")
    text = re.sub(r"<[^<>]*>", " ", text)
    text = re.sub(r"\b(?:https?://|www\.)\S+", " ", text)
    text = re.sub(r"\S+@\S+\.\S+", " ", text)
    text = re.sub(r"@[\w\d]+\b", " ", text)
    text = text.translate(TABLE)
    text = re.sub(r"\S+\.(?:png|jpe?g|bmp|webp|eps|pdf|apk|mp4|gif|tiff?|html?)\b", " ", text)
    text = re.sub(r"#\d{1,5}\b|\b\d{6,}\b|\b\d+(?:\.\d+){3}\b", " ", text)
    text = re.sub(r"\b(?:free )?(?:shipping|download)\b|\bclick (?:for|on) \w+", " ", text)
    text = re.sub(r"\b\d+\s*[x×]\s*\d+\b", " ", text)
    text = re.sub(r"([\"'.,:;!?-])\1{1,}", r"\1", text)
    text = re.sub(r"[<>\[\]{}|\\~^*_+=#]+", " ", text)
    text = re.sub(r"\s+([.,:;!?])", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"^[\"'_,\-:;+]+|[\"'_,\-:;+]+$", "", text).strip()
