"""Training of latent resamplers: token cross-entropy, commitment, and reconstruction through the frozen decoder."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.models.kinds import ImageTokenizer
from ..engine.models.upsampler import LatentResampler, ResamplerConfig
from .critic import Critic
from .loop import Task
from .perceptual import feature_maps, perceptual_distance
from .sources import ImageSource
from .token_pool import TokenPool
from .tokenizer import psnr


class ResamplerTask(Task):
    """All resamplers of a family at once; each step trains every pair on one batch of aligned pictures.

    Losses (MuLo-SD, arXiv 2601.05149, section on up-sampling), each with its weight: cross-entropy over cosine
    similarities to the codebook, commitment to the true code vector, and of the decoded prediction (straight through)
    the pixel error, the perceptual distance (`features`: by the tokenizer's own "encoder", or by "lite0") and what a
    patch discriminator says.

    With `crop`, a random window of so many target tokens a side is decoded of each prediction instead of all of it: the
    resampler still sees the whole draft, while decoding and what follows it, most of a step, get cheaper by the square.
    At the window's edge the decoder sees padding; a tokenizer that was trained on crops of that size is used to it.
    """

    def __init__(
        self,
        pairs: list[ResamplerConfig],
        tokenizer: ImageTokenizer,
        source: ImageSource,
        *,
        batch: int = 8,
        cross_entropy: float = 1.0,
        commitment: float = 0.5,
        pixel: float = 1.0,
        perceptual: float = 0.0,
        features: str = "encoder",
        adversarial: float = 0.0,
        temperature: float = ResamplerConfig.temperature,
        token_noise: float = 0.02,
        pool: int = 0,
        crop: int = 0,
    ) -> None:
        if crop < 0:
            raise ValueError(f"crop must be at least 1 token of the target grid, or 0 for all of it, got {crop}")
        self.resamplers = {p.name: LatentResampler(p) for p in pairs}
        self.module = nn.ModuleDict(self.resamplers)
        self.tokenizer = tokenizer
        self._frozen = cast("nn.Module", tokenizer).eval().requires_grad_(False)
        self.pool = TokenPool(source, tokenizer, pool)
        self.pairs, self.size = pairs, batch
        self.cross_entropy, self.commitment, self.pixel = cross_entropy, commitment, pixel
        self.perceptual, self.adversarial = perceptual, adversarial
        self._maps = feature_maps(features, tokenizer) if perceptual > 0 else None
        self.critic = Critic() if adversarial > 0 else None
        self.temperature, self.token_noise, self.crop = temperature, token_noise, crop

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        grids = tuple(sorted({g for p in self.pairs for g in (p.source, p.target)}))
        self._frozen.to(device)
        codebook = self.tokenizer.codebook
        drawn = self.pool.draw(rng, grids, self.size, device)
        tokens = {g: t.view(self.size, g, g) for g, t in drawn.tokens.items()}
        in_pixels = self.pixel > 0 or self.perceptual > 0 or self.critic is not None
        pictures = {g: self.pool.pictures(drawn, g, device) for g in {p.target for p in self.pairs} if in_pixels}
        total = torch.zeros((), device=device)
        figures = {}
        for pair in self.pairs:
            given, wanted = tokens[pair.source], tokens[pair.target]
            # The drafter errs; a resampler that has seen wrong tokens repairs some of them.
            wrong = torch.from_numpy(rng.random(tuple(given.shape)) < self.token_noise).to(device)
            noise = torch.from_numpy(rng.integers(len(codebook), size=tuple(given.shape))).to(device)
            z = F.normalize(self.resamplers[pair.name](codebook[torch.where(wrong, noise, given)]).float(), dim=-1)
            loss = self.commitment * ((z - codebook[wanted]) ** 2).sum(-1).mean()
            if self.cross_entropy > 0:
                logits = z @ codebook.t() / self.temperature
                loss = loss + self.cross_entropy * F.cross_entropy(logits.flatten(0, 2), wanted.flatten())
            with torch.no_grad():
                self.resamplers[pair.name].counts += torch.bincount(wanted.flatten(), minlength=len(codebook))
                predicted = self.resamplers[pair.name].pick(z.detach(), codebook)
            if in_pixels:
                shown, real = z + (codebook[predicted] - z).detach(), pictures[pair.target]
                if 0 < self.crop < pair.target:
                    at = rng.integers(pair.target - self.crop + 1, size=(self.size, 2)).tolist()
                    patch = self.tokenizer.config.patch
                    shown = windows(shown, at, self.crop)
                    real = windows(real.movedim(1, -1), at, self.crop, patch).movedim(-1, 1)
                out = self.tokenizer.decode_latents(shown)
                error = ((out - real) ** 2).mean()
                figures[f"psnr{pair.name}"] = psnr(float(error.detach()) / 4)
                loss = loss + self.pixel * error
                if self._maps is not None:
                    loss = loss + self.perceptual * perceptual_distance(self._maps, out, real)
                if self.critic is not None:
                    loss = loss + self.adversarial * self.critic.judge(out, real)
            total = total + loss
            changed = wanted != wanted.flatten(1).mode(dim=1).values[:, None, None]
            figures[f"hit{pair.name}"] = float((predicted == wanted)[changed].float().mean())
        return total, figures

    def state(self) -> dict[str, Tensor]:
        return {} if self.critic is None else self.critic.saved()

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.critic is not None:
            self.critic.restore(state)


def windows(x: Tensor, at: list[list[int]], side: int, patch: int = 1) -> Tensor:
    """Windows [B, side, side, d] of x [B, H, W, d], one each, from (row, column) `at` on, all in units of `patch`."""
    corners = [(row * patch, column * patch) for row, column in at]
    size = side * patch
    return torch.stack([one[r : r + size, c : c + size] for one, (r, c) in zip(x, corners, strict=True)])
