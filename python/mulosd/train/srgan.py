"""Training of a family's super-resolution network: to images at full size from the tokens of smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..engine.models.kinds import ImageTokenizer
from ..engine.models.srgan import SuperResolver, SuperResolverConfig
from .checkpoint import load_averaged
from .config import TrainingFile
from .losses import ImageTask, feature_maps, psnr
from .sources import ImageSource
from .token_pool import as_input, tokens_of
from .tokenizer import trained_tokenizer

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class SuperResolverTask(ImageTask):
    """Enlarges what the tokenizer makes of small images, as drafts are, to what the large ones look like.

    The absolute error leads to the right image; a patch discriminator asks for texture where that alone would blur
    (SRGAN, arXiv 1609.04802), and features of a network may say what is alike.

    Args:
        config: sizes of the network.
        tokenizer: frozen.
        source: of the images.
        sizes: side of the large images in px: share of the steps. The small ones have half of it.
        batch: images a step.
        pool: number of different images; each is encoded once, and kept with its double size. 0 draws a new one every
            time.
        crop: side in px of the window of the large image that is trained on.
        pixel, perceptual, adversarial: weights of the absolute error, of the perceptual distance (`features`: by the
            tokenizer's own "encoder", or by "lite0"), and of the discriminator.
        start: step from which on the discriminator is asked.

    Raises:
        ValueError: sizes that the tokenizer cannot halve, or a crop that is no even number.
    """

    def __init__(
        self,
        config: SuperResolverConfig,
        tokenizer: ImageTokenizer,
        source: ImageSource,
        *,
        sizes: Mapping[int, float],
        batch: int = 16,
        pool: int = 0,
        crop: int = 64,
        pixel: float = 1.0,
        perceptual: float = 0.0,
        features: str = "lite0",
        adversarial: float = 0.1,
        start: int = 200,
    ) -> None:
        self.sizes = {int(size): share for size, share in sizes.items()}
        step = 2 * tokenizer.config.patch
        if not self.sizes or any(size < step or size % step for size in self.sizes):
            raise ValueError(f"srgan.sizes must be multiples of {step} px, twice a token, got {list(sizes)}")
        if crop < 2 or crop % 2:
            raise ValueError(f"srgan.crop must be an even number of px, got {crop}")
        if batch < 1 or pool < 0:
            raise ValueError(f"srgan.batch must be at least 1 and pool at least 0, got {batch} and {pool}")
        self.net = SuperResolver(config)
        self.module = self.net
        self.tokenizer, self.source = tokenizer, source
        self._frozen = cast("nn.Module", tokenizer).eval().requires_grad_(False)
        self.batch, self.pool, self.crop, self.pixel = batch, pool, crop, pixel
        super().__init__(perceptual, lambda: feature_maps(features, tokenizer), adversarial, start)
        self._kept: dict[tuple[int, int], Pair] = {}

    def loss(self, rng: np.random.Generator, step: int, device: torch.device) -> tuple[Tensor, dict[str, float]]:
        self._frozen.to(device)
        shares = np.array(list(self.sizes.values()), dtype=float)
        size = list(self.sizes)[int(rng.choice(len(shares), p=shares / shares.sum()))]
        pairs = self.pairs(rng.integers(self.pool or 2**62, size=self.batch).tolist(), size, device)
        side = min(self.crop, size)
        corners = rng.integers((size - side) // 2 + 1, size=(self.batch, 2)).tolist()
        mirrored = (rng.random(self.batch) < 0.5).tolist()
        small, real = (
            as_input([window(p[i], row * k, column * k, side * k // 2, m) for p, (row, column), m in at], device)
            for i, k, at in ((j, j + 1, list(zip(pairs, corners, mirrored, strict=True))) for j in range(2))
        )
        out = self.net(small).float()
        error = (out - real).abs().mean()
        figures = {f"psnr{size}": psnr(float(((out.detach() - real) ** 2).mean()) / 4)}
        loss = self.perceived(self.pixel * error, out, real)
        return self.judged(loss, out, real, step, figures), figures

    def pairs(self, numbers: list[int], size: int, device: torch.device) -> list[Pair]:
        """Images of half the size as the tokenizer shows them, and of `size`: uint8, by number."""
        new = [n for n in dict.fromkeys(numbers) if (n, size) not in self._kept]
        kept = self._kept if self.pool else {}
        if new:
            drawn = [self.source.captioned(np.random.default_rng(n), (size // 2, size))[1] for n in new]
            grid = size // 2 // self.tokenizer.config.patch
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                tokens = tokens_of(self.tokenizer, [small for small, _ in drawn], device).view(-1, grid, grid)
                shown = ((self.tokenizer.decode(tokens).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            decoded = shown.permute(0, 2, 3, 1).cpu().numpy()
            kept.update({(n, size): (d, large) for n, d, (_, large) in zip(new, decoded, drawn, strict=True)})
        return [kept[n, size] for n in numbers]


def window(picture: NDArray[np.uint8], row: int, column: int, side: int, mirrored: bool) -> NDArray[np.uint8]:
    """A window of an image [H, W, 3], mirrored or not."""
    cut = picture[row : row + side, column : column + side]
    return np.ascontiguousarray(cut[:, ::-1]) if mirrored else cut


def srgan_config(config: TrainingFile) -> SuperResolverConfig:
    """Sizes of the super-resolution network."""
    return config.build("srgan.model", lambda given: SuperResolverConfig(**given), config.section("srgan").get("model"))


def srgan_task(config: TrainingFile, run: Path) -> SuperResolverTask:
    """The task of the stage `srgan`."""
    options = config.options("srgan", SuperResolverTask, "model")
    return SuperResolverTask(
        srgan_config(config), trained_tokenizer(config, run), config.source(captions=False), **options
    )


def trained_srgan(config: TrainingFile, run: Path) -> SuperResolver:
    """The super-resolution network of a run, with its averaged weights."""
    network = SuperResolver(srgan_config(config))
    load_averaged(network, run, "srgan")
    return network
