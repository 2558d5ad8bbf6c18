"""A perceptual distance that needs no further weights: features of the family's own image encoder.

As in LPIPS (Zhang et al., arXiv 1801.03924), features of several resolutions are brought to unit length by position and
compared; there the network was trained to classify, here to describe pictures for the very decoder that draws them.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.models.kinds import ImageTokenizer
from ..engine.models.vq import VQ


def features(tokenizer: ImageTokenizer, image: Tensor) -> list[Tensor]:
    """Feature maps [B, C, h, w] of images [B, 3, H, W], one a resolution."""
    if isinstance(tokenizer, VQ):
        x, found = tokenizer.encoder.conv_in(image), []
        for level in tokenizer.encoder.conv_blocks:
            x = level(x)
            found.append(x)
        return found
    x, found = image, []
    for layer in cast("nn.Sequential", cast("nn.Module", tokenizer).encoder):
        smaller = isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)
        x = layer(x)
        if smaller:
            found.append(x)
    return found


def perceptual_distance(tokenizer: ImageTokenizer, image: Tensor, real: Tensor) -> Tensor:
    """Mean squared distance of unit-length features, averaged over resolutions; gradients reach `image` alone."""
    with torch.no_grad():
        wanted = features(tokenizer, real)
    pairs = zip(features(tokenizer, image), wanted, strict=True)
    each = [((F.normalize(a, dim=1) - F.normalize(b, dim=1)) ** 2).sum(dim=1).mean() for a, b in pairs]
    return torch.stack(each).mean()
