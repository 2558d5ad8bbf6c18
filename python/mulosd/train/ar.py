"""Training of the AR transformer, and of the text encoder of a family of phrases, on every grid of the family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.conditioning import Conditioner
from ..engine.models.tokenizer import Tokenizer
from ..engine.models.transformer import Transformer, TransformerConfig
from .loop import Task
from .sources import ImageSource
from .token_pool import TokenPool

VALIDATION_BATCH = 8


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
    """Next-token cross-entropy with condition dropout (for CFG) and a little token noise (against exposure bias).

    Args:
        model: sizes of the transformer.
        conditioner: captions to conditions; its weights, such as a text encoder, are trained along.
        tokenizer: frozen.
        source: of captioned pictures.
        phases: grids and batches by step.
        cond_dropout: share of pictures whose condition is taken away.
        token_noise: share of tokens that the transformer reads wrong.
        entropy_weight: see `weights`.
        cond_only: train the conditioner's weights alone.
        freeze_text: leave the conditioner, and the lookup by position, as the captions stage taught them. Trained
            along with the images at large steps they forget the order of the objects.
        pool: see `TokenPool`.
        held_out: of the pictures whose cross-entropy validates.
        validation: how many, on every grid.
    """

    def __init__(
        self,
        model: TransformerConfig,
        conditioner: Conditioner,
        tokenizer: Tokenizer,
        source: ImageSource,
        phases: list[Phase],
        *,
        cond_dropout: float = 0.1,
        token_noise: float = 0.02,
        entropy_weight: float = 0.0,
        cond_only: bool = False,
        freeze_text: bool = False,
        pool: int = 0,
        held_out: ImageSource | None = None,
        validation: int = 64,
    ) -> None:
        self.conditioner, self.ar = conditioner, Transformer(model)
        self.module = nn.ModuleDict({**conditioner.weights, "ar": self.ar})
        if cond_only:
            self.ar.requires_grad_(False)
        if freeze_text:
            for module in (*conditioner.weights.values(), self.ar.position_cond):
                if module is not None:
                    module.requires_grad_(False)
        self.phases = phases
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.pool = TokenPool(source, tokenizer, pool)
        self.cond_dropout, self.token_noise = cond_dropout, token_noise
        self.entropy_weight = entropy_weight
        self.figures: dict[int, float] = {}
        # The same pictures every time: they are drawn once, whatever the pool of the training pictures.
        self.held_out = None if held_out is None else TokenPool(held_out, tokenizer, validation)

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
        drawn = self.pool.draw(rng, (grid,), phase.batch[grid], device)
        tokens = drawn.tokens[grid]
        dropped = torch.from_numpy(rng.random(len(tokens)) < self.cond_dropout).to(device)
        cond = dropped_condition(self.conditioner, drawn.captions, dropped)
        noisy = torch.from_numpy(rng.random(tuple(tokens.shape)) < self.token_noise).to(device)
        noise = torch.from_numpy(rng.integers(self.tokenizer.config.codebook_size, size=tuple(tokens.shape))).to(device)
        logits = self.ar(cond, torch.where(noisy, noise, tokens), grid)
        each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        weight = self.weights(logits)
        loss = (weight * each).sum() / weight.sum()
        value = float(each.detach().mean())
        old = self.figures.get(grid, value)
        self.figures[grid] = old + 0.1 * (value - old)
        return loss, {f"nll{g}": v for g, v in sorted(self.figures.items())}

    def validate(self, device: torch.device) -> dict[str, float]:
        """Cross-entropy a token by grid on held-out pictures with their conditions, and its mean over grids."""
        if self.held_out is None:
            return super().validate(device)
        self.tokenizer.to(device)
        found = {}
        for grid in self.ar.config.grids:
            drawn = self.held_out.all(grid, device)
            total = 0.0
            for start in range(0, len(drawn.captions), VALIDATION_BATCH):
                part = slice(start, start + VALIDATION_BATCH)
                tokens = drawn.tokens[grid][part]
                keep = torch.zeros(len(tokens), dtype=torch.bool, device=device)
                logits = self.ar(dropped_condition(self.conditioner, drawn.captions[part], keep), tokens, grid)
                total += float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum"))
            found[f"nll{grid}"] = total / drawn.tokens[grid].numel()
        return {"loss": sum(found.values()) / len(found), **found}


def dropped_condition(conditioner: Conditioner, captions: list[str], dropped: Tensor) -> Tensor:
    """Condition features [B, T, ...] of captions, those of the unconditional branch where `dropped`, bool [B]."""
    conditioner.to(dropped.device, torch.float32)
    given = conditioner.condition(captions).features
    shape = (-1, *[1] * (given.dim() - 1))
    return torch.where(dropped.view(shape), conditioner.null(len(captions)), given)
