"""Losses of images that tasks share: plain errors, perceptual distances, and a patch discriminator.

LPIPS (Zhang et al., arXiv 1801.03924) compares features of a network that was trained to classify, at unit length by
position and of several resolutions, as `Lite0Maps` does. `EncoderMaps` needs no further weights: it takes the family's
own image encoder, trained to describe images for the decoder that draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.models.kinds import ImageTokenizer
from ..engine.models.vq import VQ
from .loop import Task

FeatureMaps = Callable[[Tensor], list[Tensor]]
NETWORKS = ("encoder", "lite0")


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical finite differences of images [B, 3, H, W]."""
    d = a - b
    return d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in 0..1."""
    return -10 * float(np.log10(max(error, 1e-10)))


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


class Critic:
    """A patch discriminator (Isola et al., arXiv 1611.07004) with the hinge loss, trained beside what it judges.

    It tells images from reconstructions, patch by patch; each call trains it one step first.

    Args:
        width: channels of the first layer.
        lr: its learning rate.
    """

    def __init__(self, width: int = 32, lr: float = 2e-4) -> None:
        layers: list[nn.Module] = []
        into = 3
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(into, out, 4, stride=2, padding=1), nn.GroupNorm(8, out), nn.LeakyReLU(0.2)]
            into = out
        self.net = nn.Sequential(*layers, nn.Conv2d(into, 1, 3, padding=1))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=lr, betas=(0.5, 0.9), weight_decay=0.0)

    def judge(self, image: Tensor, real: Tensor) -> Tensor:
        """Train on images [B, 3, H, W] against real ones, then return the loss of who made `image`."""
        self.net.to(image.device)
        told = torch.relu(1 - self.net(real)).mean() + torch.relu(1 + self.net(image.detach())).mean()
        self.optimizer.zero_grad(set_to_none=True)
        told.backward()
        self.optimizer.step()
        # A copy of the weights: the next call changes them in place before the caller's backward pass.
        now = {k: v.detach().clone() for k, v in self.net.named_parameters()}
        judged: Tensor = torch.func.functional_call(self.net, now, (image,))
        return -judged.mean()

    def saved(self) -> dict[str, Tensor]:
        """Weights and moments."""
        moments = self.optimizer.state_dict()["state"]
        found = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        return found | {f"moment.{i}.{k}": v for i, values in moments.items() for k, v in values.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `saved` gave."""
        self.net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("moment."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


class ImageTask(Task):
    """A task whose images are also judged by what they look like.

    Args:
        perceptual: weight of the perceptual distance; 0 is none.
        maps: the network of the distance, made where it has a weight.
        adversarial: weight of what a patch discriminator says; 0 is none.
        judged_from: first step of the discriminator.
    """

    def __init__(
        self, perceptual: float, maps: Callable[[], FeatureMaps], adversarial: float, judged_from: int = 0
    ) -> None:
        self.perceptual, self.adversarial, self.judged_from = perceptual, adversarial, judged_from
        self.maps = maps() if perceptual > 0 else None
        self.critic = Critic() if adversarial > 0 else None

    def perceived(self, loss: Tensor, out: Tensor, real: Tensor) -> Tensor:
        """A loss with the perceptual distance of images [B, 3, H, W] added."""
        return loss if self.maps is None else loss + self.perceptual * perceptual_distance(self.maps, out, real)

    def judged(
        self, loss: Tensor, out: Tensor, real: Tensor, step: int, figures: dict[str, float] | None = None
    ) -> Tensor:
        """A loss with what the discriminator says of images [B, 3, H, W] added; it learns from them first."""
        if self.critic is None or step < self.judged_from:
            return loss
        found = self.critic.judge(out, real)
        if figures is not None:
            figures["judged"] = float(found.detach())
        return loss + self.adversarial * found

    def state(self) -> dict[str, Tensor]:
        return {} if self.critic is None else self.critic.saved()

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.critic is not None and state:
            self.critic.restore(state)
