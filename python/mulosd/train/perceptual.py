"""Perceptual distances: features of several resolutions, at unit length by position, compared as in LPIPS.

LPIPS (Zhang et al., arXiv 1801.03924) takes a network that was trained to classify, as `Lite0Maps` does. `EncoderMaps`
needs no further weights: it takes the family's own image encoder, trained to describe pictures for the very decoder
that draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.models.kinds import ImageTokenizer
from ..engine.models.vq import VQ

FeatureMaps = Callable[[Tensor], list[Tensor]]
NETWORKS = ("encoder", "lite0")


class EncoderMaps:
    """Feature maps [B, C, h, w] of images [B, 3, H, W], one a resolution, by the encoder of an image tokenizer."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, image: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        if isinstance(self.tokenizer, VQ):
            x = self.tokenizer.encoder.conv_in(image)
            for level in self.tokenizer.encoder.conv_blocks:
                x = level(x)
                found.append(x)
            return found
        x = image
        for layer in cast("nn.Sequential", cast("nn.Module", self.tokenizer).encoder):
            smaller = isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
            x = layer(x)
            if smaller:
                found.append(x)
        return found


class Lite0Maps:
    """Feature maps of images [B, 3, H, W] in [-1, 1] at strides 2, 4, 8 and 16 of EfficientNet-Lite0.

    Raises:
        ImportError: its packages are missing (extra `bench`).
    """

    def __init__(self) -> None:
        from ..measure.readers.lite0 import lite0

        self.net = lite0()
        strides = [int(block._depthwise_conv.stride[0]) for block in self.net._blocks]
        # The last map of each resolution; what follows the fourth is about classes more than about looks.
        self.last = [i - 1 for i, stride in enumerate(strides) if stride > 1]

    def __call__(self, image: Tensor) -> list[Tensor]:
        net = self.net.to(image.device)
        x = net._swish(net._bn0(net._conv_stem((image * 127.5 + 0.5) / 128)))
        found = []
        for i, block in enumerate(net._blocks[: self.last[-1] + 1]):
            x = block(x)
            if i in self.last:
                found.append(x)
        return found


def feature_maps(network: str, tokenizer: ImageTokenizer) -> FeatureMaps:
    """The network of a training file's `features`: "encoder" or "lite0"; ValueError for another."""
    if network not in NETWORKS:
        raise ValueError(f"features must be {' or '.join(map(repr, NETWORKS))}, got {network!r}")
    return Lite0Maps() if network == "lite0" else EncoderMaps(tokenizer)


def perceptual_distance(maps: FeatureMaps, image: Tensor, real: Tensor) -> Tensor:
    """Mean squared distance of unit-length features, averaged over resolutions; gradients reach `image` alone."""
    with torch.no_grad():
        wanted = maps(real)
    pairs = zip(maps(image), wanted, strict=True)
    each = [((unit(a) - unit(b)) ** 2).sum(dim=1).mean() for a, b in pairs]
    return torch.stack(each).mean()


def unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=1)
