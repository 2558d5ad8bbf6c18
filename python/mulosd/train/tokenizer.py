"""Training of the VQ tokenizer: reconstruction, commitment, EMA codebook with dead-code restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.family import Family
from ..engine.models.tokenizer import Tokenizer, TokenizerConfig
from ..engine.models.transformer import Transformer
from .checkpoint import load_averaged, part
from .config import TrainingFile
from .losses import ImageTask, Lite0Maps, gradient_loss, psnr
from .sources import ImageSource
from .token_pool import as_input


class TokenizerTask(ImageTask):
    """The loss of a tokenizer on random images of a source.

    Reconstruction is L1, L2 and the difference of gradients, with `perceptual` above 0 also the distance of
    EfficientNet-Lite0 features (extra `bench`), and from step `adversarial_from` on what a patch discriminator says:
    it asks for sharpness, which L1 and L2 do not reward, of a decoder that draws already.

    Args:
        config: sizes.
        source: of images.
        held_out: of the images that are reconstructed whole, at the largest size, to validate.
        batch: image size -> images a step.
        crop: larger images are cropped to this side in px.
        commitment, perceptual, adversarial: weights of losses.
        adversarial_from: first step of the discriminator.
        codebook_decay: of the running means that codes are.
        restart_every: steps between replacements of dead codes.
        validation: how many.
    """

    def __init__(
        self,
        config: TokenizerConfig,
        source: ImageSource,
        held_out: ImageSource | None = None,
        *,
        batch: dict[int, int],
        crop: int = 128,
        commitment: float = 0.25,
        perceptual: float = 0.0,
        adversarial: float = 0.0,
        adversarial_from: int = 0,
        codebook_decay: float = 0.99,
        restart_every: int = 100,
        validation: int = 64,
    ) -> None:
        self.tokenizer = Tokenizer(config)
        # Convolutions in bf16 run several times faster on channels-last tensors.
        self.module = self.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.source, self.batch, self.crop = source, batch, crop
        self.commitment, self.decay, self.restart_every = commitment, codebook_decay, restart_every
        self.counts = torch.ones(config.codebook_size)
        self.sums = self.tokenizer.codebook.clone()
        self._last = torch.empty(0)
        super().__init__(perceptual, Lite0Maps, adversarial, adversarial_from)
        self.held_out, self.validation = held_out, validation

    def state(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "sums": self.sums, **{f"critic.{k}": v for k, v in super().state().items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.counts, self.sums = state["counts"], state["sums"]
        super().load_state(part(state, "critic."))

    def difference(self, out: Tensor, image: Tensor) -> Tensor:
        """The reconstruction loss of images [B, 3, H, W], without the discriminator."""
        pixel = (out - image).abs().mean() + ((out - image) ** 2).mean() + gradient_loss(out, image)
        return self.perceived(pixel, out, image)

    def validate(self, device: torch.device) -> dict[str, float]:
        if self.held_out is None:
            return super().validate(device)
        size = max(self.batch)
        parts = []
        for number in range(self.validation):
            picture = self.held_out.captioned(np.random.default_rng([number]), (size,))[1][0]
            image = as_input([picture], device).contiguous(memory_format=torch.channels_last)
            out = self.tokenizer.decode(self.tokenizer.encode(image))
            parts.append([float(self.difference(out, image)), psnr(float(((out - image) ** 2).mean()) / 4)])
        loss, quality = np.mean(parts, axis=0).tolist()
        return {"loss": loss, "psnr": quality}

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        latents, images = [], []
        for size, count in self.batch.items():
            image = as_input([self.source.image(rng, size, self.crop) for _ in range(count)], device)
            images.append(image)
            latents.append(self.tokenizer.latents(image.contiguous(memory_format=torch.channels_last)))
        total = torch.zeros((), device=device)
        error = 0.0
        for image, z in zip(images, latents, strict=True):
            with torch.no_grad():
                index = self.tokenizer.quantize(z)
                q = self.tokenizer.codebook[index]
            out = self.tokenizer.decode_latents(z + (q - z).detach())
            weight = image.shape[0] / sum(self.batch.values())
            loss = self.difference(out, image) + self.commitment * ((z - q) ** 2).sum(-1).mean()
            total = total + weight * self.judged(loss, out, image, step)
            error += weight * float(((out.detach().clamp(-1, 1) - image) ** 2).mean()) / 4
        with torch.no_grad():
            flat = torch.cat([z.reshape(-1, z.shape[-1]) for z in latents])
            self._update_codebook(flat)
        return total, {"psnr": psnr(error), "codes": float((self.counts > 0.05).sum())}

    def _update_codebook(self, flat: Tensor) -> None:
        index = self.tokenizer.quantize(flat)
        self.counts, self.sums = self.counts.to(flat.device), self.sums.to(flat.device)
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(index, dtype=torch.float32))
        sums = torch.zeros_like(self.sums).index_add_(0, index, flat)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        live = self.counts > 1e-3
        self.tokenizer.codebook[live] = F.normalize(self.sums[live], dim=-1)
        self._last = flat

    def after_step(self, step: int) -> None:
        if (step + 1) % self.restart_every or not self._last.numel():
            return
        dead = (self.counts < 0.05).nonzero()[:, 0]
        if not dead.numel():
            return
        # Restart on vectors that are served worst, so that a new code goes where it is needed.
        badness = 1 - (self._last @ self.tokenizer.codebook.t()).amax(dim=-1)
        pick = torch.multinomial(badness.clamp_min(1e-6), dead.numel(), replacement=self._last.shape[0] < dead.numel())
        fresh = self._last[pick]
        self.tokenizer.codebook[dead] = fresh
        self.sums[dead] = fresh
        self.counts[dead] = 1.0


def tokenizer_config(config: TrainingFile) -> TokenizerConfig:
    """Sizes of the tokenizer."""
    return config.build("tokenizer.model", TokenizerConfig.from_dict, config.section("tokenizer").get("model"))


def tokenizer_task(config: TrainingFile, run: Path) -> TokenizerTask:
    """The task of the stage `tokenizer`."""
    options = config.options("tokenizer", TokenizerTask, "model")
    held_out = config.validation_source("tokenizer", captions=False)
    return TokenizerTask(tokenizer_config(config), config.source(captions=False), held_out, **options)


def trained_tokenizer(config: TrainingFile, run: Path) -> Tokenizer:
    """The tokenizer of a run, with its averaged weights, or that of the family to start from when the run has none."""
    start = config.initial_family()
    if start is not None and not (run / "tokenizer.pt").exists():
        return trained_here(start)[1]
    tokenizer = Tokenizer(tokenizer_config(config))
    load_averaged(tokenizer, run, "tokenizer")
    return tokenizer


def trained_here(family: Family) -> tuple[Transformer, Tokenizer]:
    """The AR model and the tokenizer of a family that `mulosd train` made; ValueError for one that was converted."""
    if not isinstance(family.ar, Transformer) or not isinstance(family.tokenizer, Tokenizer):
        raise ValueError(f"family {family.name!r} was not trained by mulosd: its models cannot be trained further here")
    return family.ar, family.tokenizer
