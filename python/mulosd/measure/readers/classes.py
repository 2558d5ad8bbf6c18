"""An independent reader of classes: a linear head on EfficientNet-Lite0 features, trained on real images alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...engine.conditioning import ClassConditioner
from ...engine.family_config import told
from ...engine.paths import expanded
from ...engine.weights import read_tensors, write_tensors
from ...files.texts import parse_json
from ..statistics import wilson

FILE = "classifier.safetensors"


class ClassReader:
    """Names the class of images by their Lite0 features.

    Args:
        weight: float [classes, features].
        bias: float [classes].
        names: of the classes, synonyms separated by ", ", as `ClassConditioner` takes them.
        figures: measured when it was trained, such as the accuracy on held-out images.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        names: Sequence[str],
        figures: dict[str, Any] | None = None,
    ) -> None:
        if weight.dim() != 2 or bias.shape != weight.shape[:1] or len(names) != len(bias):
            raise ValueError(f"{len(names)} classes do not fit a head of {list(weight.shape)} and {list(bias.shape)}")
        self.weight, self.bias, self.names = weight.float(), bias.float(), list(names)
        self.figures = figures or {}
        self._classes = ClassConditioner(len(self.names), self.names)

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float32],
        classes: NDArray[np.integer[Any]],
        names: Sequence[str],
        *,
        penalty: float = 1e-3,
        steps: int = 100,
    ) -> ClassReader:
        """Logistic regression with an L2 penalty on standardised features, every class of equal weight.

        Args:
            features: [n, d] of training images.
            classes: int [n].
            names: of the classes.
            penalty: of the squared weights, beside the mean cross-entropy.
            steps: of L-BFGS, at most.

        Raises:
            ValueError: a class without an image, or another number of classes than of features.
        """
        counts = np.bincount(classes, minlength=len(names))
        if len(features) != len(classes) or len(counts) != len(names) or not counts.all():
            raise ValueError("a reader of classes is fitted to features [n, d] and n classes, each with an image")
        x, y = torch.from_numpy(np.asarray(features, np.float32)), torch.from_numpy(classes.astype(np.int64))
        mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x = (x - mean) / scale
        share = torch.from_numpy(1 / counts).float()
        weight = torch.zeros(len(names), x.shape[1], requires_grad=True)
        bias = torch.zeros(len(names), requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(x @ weight.t() + bias, y, weight=share) + penalty * weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
        plain = weight.detach() / scale
        return cls(plain, bias.detach() - plain @ mean, names)

    @classmethod
    def load(cls, path: Path) -> ClassReader:
        """Read what `save` wrote; ValueError when there is no such file or it is something else."""
        path = expanded(path)
        if not path.exists():
            raise ValueError(f"there is no reader of classes at {path}; `mulosd train classifier` makes one")
        state, metadata = read_tensors(path)
        if "classes" not in metadata:
            raise ValueError(f"{path} is no reader of classes: its metadata lack 'classes'")
        described = parse_json(metadata["classes"], f"{path}: classes")
        with told(path):
            names, figures = described["names"], described["figures"]
            if not isinstance(figures, dict) or not all(isinstance(name, str) for name in names):
                raise ValueError("its names or its figures are none")
            return cls(state["weight"], state["bias"], names, figures)

    def save(self, path: Path) -> None:
        """Write the head in float16, with names and figures in the metadata."""
        described = json.dumps({"names": self.names, "figures": self.figures})
        write_tensors(path, {"weight": self.weight.half(), "bias": self.bias.half()}, {"classes": described})

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [n, d] -> float32 [n, classes]."""
        found: NDArray[np.float32] = (torch.from_numpy(features) @ self.weight.t() + self.bias).numpy()
        return found

    def read(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """The likeliest class of each image, by its features [B, d]: int64 [B]."""
        return self.logits(features).argmax(axis=1)

    def ids(self, classes: Sequence[str | int]) -> NDArray[np.int64]:
        """Class ids of prompts, names or numbers; ValueError for one that is no class."""
        return np.asarray([self._classes.id(str(c)) for c in classes], np.int64)

    def accuracy_of(self, classes: Sequence[str | int], features: NDArray[np.float32]) -> dict[str, Any]:
        """Share of images, by their features [B, d], that show the class that was asked for.

        Returns:
            {"value", "ci95", "pictures"}: the share whose likeliest class is the right one, its 95 % interval (Wilson)
            and the number of images; {"top5"}; {"by_class"}: name -> share, of the classes that were asked for.

        Raises:
            ValueError: a prompt that is no class, no images, or another number of images than of prompts.
        """
        asked = self.ids(classes)
        if not len(asked) or len(asked) != len(features):
            raise ValueError(f"as many classes as images are needed, got {len(asked)} and {len(features)}")
        order = np.argsort(-self.logits(features), axis=1, kind="stable")
        right = order[:, 0] == asked
        return {
            "value": float(right.mean()),
            "ci95": list(wilson(float(right.sum()), len(right))),
            "pictures": len(right),
            "top5": float((order[:, :5] == asked[:, None]).any(axis=1).mean()),
            "by_class": {self.names[c]: float(right[asked == c].mean()) for c in np.unique(asked)},
        }
