"""`ZipAR(zero_kv=True)` against a plain loop that was written from the rule of ZipAR's published code for LlamaGen.

That rule: row 0 is drawn alone. A row begins when the row above has `window` tokens. Each forward feeds the newest
token of every row under way, one that was completed in the forward before its last token too. A row that begins is fed,
in the slot of the last token of the row above, the token that stands last in the row above *that* one at this moment.
Queries see every slot up to their own; what was never written there is a key and a value of zeros.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from released import tiny_ar
from torch import Tensor

from mulosd.checkpoints.convert import convert_llamagen
from mulosd.engine.decoding import ZipAR
from mulosd.engine.decoding.zipar import newest_above
from mulosd.engine.engine import Engine
from mulosd.engine.sampling import SamplingParams

SIDE, HEADS, NULL = 8, 2, 10


class Plain:
    """A class-conditional LlamaGen by its formulas, over a static cache of zeros; with and without the class."""

    def __init__(self, state: dict[str, Tensor], label: int, scale: float) -> None:
        self.state, self.scale = state, scale
        self.width = state["norm.weight"].shape[0]
        size = self.width // HEADS
        self.cache = torch.zeros(2, 2, 2, HEADS, 1 + SIDE * SIDE, size)  # layer, key or value, branch, head, slot
        frequency = 10000.0 ** (-torch.arange(0, size // 2, 2) / (size // 2))
        rows = torch.arange(SIDE)[:, None] * frequency
        angle = torch.cat([rows.repeat_interleave(SIDE, 0), rows.repeat(SIDE, 1)], dim=1)
        none = torch.zeros(1, size // 2)
        self.cos, self.sin = torch.cat([none, angle.cos()]), torch.cat([none, angle.sin()])
        embedded = state["cls_embedding.embedding_table.weight"][torch.tensor([label, NULL])]
        self.first = int(self.forward(embedded[:, None], [0])[0].argmax())

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.state[name]

    def rotate(self, x: Tensor, slots: list[int]) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = self.cos[slots], self.sin[slots]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    def forward(self, x: Tensor, slots: list[int]) -> Tensor:
        """Guided logits [n, V] of inputs [2, n, dim] in these slots."""
        seen = torch.arange(self.cache.shape[-2]) <= torch.tensor(slots)[:, None]
        for layer in range(2):
            stem = f"layers.{layer}."
            qkv = self.norm(x, f"{stem}attention_norm.weight") @ self.state[f"{stem}attention.wqkv.weight"].T
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
            self.cache[layer, 0][:, :, slots], self.cache[layer, 1][:, :, slots] = self.rotate(k, slots), v
            keys, values = self.cache[layer]
            scores = self.rotate(q, slots) @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
            mixed = scores.masked_fill(~seen, -math.inf).softmax(-1) @ values
            x = x + mixed.transpose(1, 2).flatten(-2) @ self.state[f"{stem}attention.wo.weight"].T
            h, ffn = self.norm(x, f"{stem}ffn_norm.weight"), f"{stem}feed_forward."
            gated = F.silu(h @ self.state[f"{ffn}w1.weight"].T) * (h @ self.state[f"{ffn}w3.weight"].T)
            x = x + gated @ self.state[f"{ffn}w2.weight"].T
        cond, uncond = self.norm(x, "norm.weight") @ self.state["output.weight"].T
        return uncond + (cond - uncond) * self.scale

    def feed(self, tokens: list[int], slots: list[int]) -> list[int]:
        """The likeliest token behind each of these."""
        embedded = self.state["tok_embeddings.weight"][torch.tensor(tokens)]
        logits: Tensor = self.forward(embedded.expand(2, -1, -1), slots)
        found: list[int] = logits.argmax(-1).tolist()
        return found


def published(plain: Plain, window: int) -> list[list[int]]:
    """Rows of tokens; slot 0 is the class, slot 1 + r * SIDE + c that of cell (r, c)."""
    rows: list[list[int]] = [[plain.first], *([] for _ in range(SIDE - 1))]
    for column in range(1, SIDE):
        rows[0] += plain.feed(rows[0][-1:], [column])
    under_way, stand_in, complete = [1], {1: rows[0][-1]}, list[int]()
    while under_way:
        before = [(rows[r][-1], (r + 1) * SIDE) for r in complete]
        own = [(rows[r][-1] if rows[r] else stand_in[r], r * SIDE + len(rows[r])) for r in under_way]
        tokens, slots = zip(*before, *own, strict=True)
        drawn = plain.feed(list(tokens), list(slots))[len(before) :]
        for r, token in zip(list(under_way), drawn, strict=True):
            rows[r].append(token)
            if len(rows[r]) == window and r + 1 < SIDE:
                under_way.append(r + 1)
                stand_in[r + 1] = rows[r - 1][-1]
        complete = [r for r in under_way if len(rows[r]) == SIDE]
        under_way = [r for r in under_way if r not in complete]
    return rows


@pytest.fixture(scope="module", params=(100, 101, 103))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, files: Any) -> Any:
    """Weights of a seed, and an engine of the family that was converted from them."""
    folder: Path = tmp_path_factory.mktemp("zipar")
    state = tiny_ar("class", SIDE, request.param)
    torch.save({"model": state}, folder / "c2i.pt")
    convert_llamagen(
        str(folder / "c2i.pt"), str(files["vq.pt"]), folder / "family", target_size=2 * SIDE, heads=HEADS
    )  # fmt: skip
    return state, Engine.from_pretrained(folder / "family")


@torch.inference_mode()
@pytest.mark.parametrize("window", [2, 3, 4, 6])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_tokens_are_those_of_the_published_rule(pair: Any, window: int, scale: float) -> None:
    state, engine = pair
    greedy = SamplingParams(cfg_scale=scale, temperature=0.0)
    for label in (0, 7):
        wanted = torch.tensor(published(Plain(state, label, scale), window))
        assert len(wanted.unique()) > 5
        found = engine.generate(str(label), decoder=ZipAR(window, zero_kv=True), sampling=greedy).tokens[0]
        assert torch.equal(found, wanted)


def test_a_row_that_begins_early_is_fed_the_newest_token_two_rows_above() -> None:
    width = 4
    assert newest_above(11, {11}, width) == 7, "a complete row: its last token"
    assert newest_above(11, {6, 7, 10, 11}, width) == 5, "one under way: its newest"
