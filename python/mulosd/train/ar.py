"""Training of the AR transformer and its text encoder on every grid of a family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.models.text import TextEncoder, TextEncoderConfig, Vocabulary
from ..engine.models.tokenizer import Tokenizer
from ..engine.models.transformer import Transformer, TransformerConfig
from .loop import Task
from .sources import ImageSource
from .token_pool import TokenPool


@dataclass(frozen=True)
class Phase:
    """Up to step `until`: which grids are drawn (grid -> share) and how many images a batch holds (grid -> count)."""

    until: int
    shares: dict[int, float]
    batch: dict[int, int]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Phase:
        return cls(**values)


class ARTask(Task):
    """Next-token cross-entropy with condition dropout (for CFG) and a little token noise (against exposure bias)."""

    def __init__(
        self,
        model: TransformerConfig,
        text: TextEncoderConfig,
        vocabulary: Vocabulary,
        tokenizer: Tokenizer,
        source: ImageSource,
        phases: list[Phase],
        *,
        cond_dropout: float = 0.1,
        token_noise: float = 0.02,
        entropy_weight: float = 0.0,
        text_only: bool = False,
        pool: int = 0,
    ) -> None:
        self.text, self.ar = TextEncoder(text), Transformer(model)
        self.module = nn.ModuleDict({"text": self.text, "ar": self.ar})
        if text_only:
            self.ar.requires_grad_(False)
        self.vocabulary, self.phases = vocabulary, phases
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.pool = TokenPool(source, tokenizer, pool)
        self.cond_dropout, self.token_noise = cond_dropout, token_noise
        self.entropy_weight = entropy_weight
        self.figures: dict[int, float] = {}

    def weights(self, logits: Tensor) -> Tensor:
        """Weights [B*n] of the positions of logits [B, n, V]: one plus `entropy_weight` times the model's entropy.

        Few positions decide what a picture shows (the first token of an object), and in a plain mean over a large
        grid they drown. A weight that depends on the context alone leaves the optimum of every distribution as it is.
        """
        log_p = F.log_softmax(logits.detach().flatten(0, 1), dim=-1)
        return 1 - self.entropy_weight * (log_p.exp() * log_p).sum(dim=-1)

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        phase = next((p for p in self.phases if step < p.until), self.phases[-1])
        grids = list(phase.shares)
        share = np.asarray([phase.shares[g] for g in grids], dtype=float)
        grid = int(rng.choice(grids, p=share / share.sum()))
        self.tokenizer.to(device)
        length, count = self.text.config.length, phase.batch[grid]
        drawn = self.pool.draw(rng, (grid,), count, device)
        tokens = drawn.tokens[grid]
        ids = torch.tensor([self.vocabulary.encode(c, length) for c in drawn.captions], device=device)
        null = torch.from_numpy(rng.random(len(ids)) < self.cond_dropout).to(device)
        ids = torch.where(null[:, None], torch.tensor(self.vocabulary.null(ids.shape[1]), device=device), ids)
        noisy = torch.from_numpy(rng.random(tuple(tokens.shape)) < self.token_noise).to(device)
        noise = torch.from_numpy(rng.integers(self.tokenizer.config.codebook_size, size=tuple(tokens.shape))).to(device)
        logits = self.ar(self.text(ids), torch.where(noisy, noise, tokens), grid)
        each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        weight = self.weights(logits)
        loss = (weight * each).sum() / weight.sum()
        value = float(each.detach().mean())
        old = self.figures.get(grid, value)
        self.figures[grid] = old + 0.1 * (value - old)
        return loss, {f"nll{g}": v for g, v in sorted(self.figures.items())}
