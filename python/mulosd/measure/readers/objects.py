"""An independent reader of scenes: which objects stand where, and on what background.

The reader learns from real renders alone, never from decoded tokens, so that it shares no error with the models that
it judges.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...engine.family_config import check_numbers, told
from ...engine.paths import expanded
from ...engine.weights import check_shapes, read_tensors, write_tensors
from ...files.texts import parse_json

FILE = "reader.safetensors"
CELL_PX = 16  # side of a cell in the reader's input: the stride of its network


class Reading(NamedTuple):
    """One object that the reader sees: its name, its top-left cell as in `Scene.cells`, and a confidence in 0..1."""

    name: str
    row: int
    col: int
    confidence: float


@dataclass(frozen=True)
class ReaderConfig:
    """What a reader knows.

    Args:
        names: object names, in the order of the output classes.
        cells: positions a side of a scene.
        sprite_cells: side of an object in cells.
        channels: widths at strides 4, 8 and 16.
    """

    names: tuple[str, ...]
    cells: int = 8
    sprite_cells: int = 3
    channels: tuple[int, int, int] = (32, 64, 96)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"a reader needs distinct object names, got {list(self.names)}")
        if not all(isinstance(n, int) and n > 0 for n in (self.cells, self.sprite_cells)):
            raise ValueError(f"cells and sprite_cells must be at least 1, got {self.cells} and {self.sprite_cells}")
        if len(self.channels) != 3 or any(c < 8 or c % 8 for c in self.channels):
            raise ValueError(f"channels must be three multiples of 8, got {self.channels}")

    @property
    def size(self) -> int:
        """Side of the input in px."""
        return self.cells * CELL_PX


def conv_block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, group norm and SiLU; normalising per image behaves the same whatever the batch."""
    padding = 0 if kernel == stride else kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class ReaderNet(nn.Module):
    """Images [B, 3, S, S] in [-1, 1] -> logits [B, 1 + objects, cells, cells] of the object centred in each cell.

    Class 0 is "no centre here". The field of view is 76 px of input, an object of three cells being 48 px.
    """

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.channels
        self.body = nn.Sequential(
            conv_block(3, a, 4, 4),
            conv_block(a, b, 3, 2),
            conv_block(b, b, 3, 1),
            conv_block(b, c, 3, 2),
            conv_block(c, c, 3, 1),
        )
        self.head = nn.Conv2d(c, 1 + len(config.names), 1)
        # Nearly all cells are empty; starting from that belief saves the first steps.
        bias = torch.zeros(1 + len(config.names))
        bias[0] = 7.0
        self.head.bias = nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def find_objects(logits: Tensor, config: ReaderConfig, threshold: float = 0.5) -> list[list[Reading]]:
    """Objects from centre logits.

    An object that stands between cells shares its probability among up to four of them, so the strongest cell is
    taken first, with the probability of the 3 x 3 cells around it, which then count as used.

    Args:
        logits: float [B, 1 + objects, cells, cells].
        config: names and sizes.
        threshold: least confidence of an object, in (0, 1].

    Returns:
        For each image its objects, most certain first.

    Raises:
        ValueError: the logits do not have the config's shape, or the threshold is outside (0, 1].
    """
    expected = (1 + len(config.names), config.cells, config.cells)
    if logits.dim() != 4 or tuple(logits.shape[1:]) != expected:
        raise ValueError(f"logits must be [B, {', '.join(map(str, expected))}], got {list(logits.shape)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    probabilities = logits.detach().float().softmax(dim=1)[:, 1:].cpu().numpy()
    result = []
    for p in probabilities:
        p = p.copy()
        found: list[Reading] = []
        while True:
            anything = p.sum(axis=0)
            row, col = divmod(int(anything.argmax()), config.cells)
            if anything[row, col] < threshold / 4:
                break
            window = p[:, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
            mass = window.sum(axis=(1, 2))
            best = int(mass.argmax())
            if mass[best] >= threshold:
                corner = config.sprite_cells // 2
                found.append(Reading(config.names[best], row - corner, col - corner, min(1.0, float(mass[best]))))
            window[:] = 0
        result.append(sorted(found, key=lambda r: -r.confidence))
    return result


class Reader:
    """A trained reader network with the names of its classes."""

    def __init__(self, net: ReaderNet) -> None:
        self.net, self.config = net.eval(), net.config

    @classmethod
    def load(cls, path: Path, names: Sequence[str] | None = None) -> Reader:
        """Read a reader written by `save`.

        Args:
            path: the safetensors file.
            names: the objects that the caller counts on, in any order; None takes the file's.

        Raises:
            ValueError: no such file, not a reader, or a reader that does not know all of `names`.
        """
        path = expanded(path)
        if not path.exists():
            raise ValueError(f"there is no reader at {path}; train one with mulosd.train.reader")
        state, metadata = read_tensors(path)
        if "reader" not in metadata:
            raise ValueError(f"{path} is not a reader: its metadata lack 'reader'")
        with told(path):
            config = ReaderConfig(**parse_json(metadata["reader"], "reader"))
            check_numbers(asdict(config), "reader", len(state) + len(config.names), 1 << 20)
            with torch.device("meta"):
                net = ReaderNet(config)
        unknown = sorted(set(names or ()) - set(config.names))
        if unknown:
            raise ValueError(f"the reader {path} does not know {unknown}; it knows {list(config.names)}")
        check_shapes(path, net, "its own description")
        net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
        return cls(net)

    def save(self, path: Path) -> None:
        """Write the weights in float16, with the configuration in the metadata."""
        state = {k: v.to(torch.float16) for k, v in self.net.state_dict().items()}
        write_tensors(path, state, {"reader": json.dumps(asdict(self.config))})

    def read(self, images: NDArray[np.uint8], threshold: float = 0.5, batch: int = 64) -> list[list[Reading]]:
        """Objects of images.

        Args:
            images: uint8 [B, H, W, 3], square; reduced by area to the reader's input.
            threshold: least confidence of an object.
            batch: images a forward.

        Raises:
            ValueError: images of another type or shape, or smaller than the reader's input.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
            raise ValueError(f"read takes uint8 [B, S, S, 3], got {images.dtype} {list(images.shape)}")
        if images.shape[1] < self.config.size:
            raise ValueError(f"pictures must be at least {self.config.size} px a side, got {images.shape[1]}")
        device = next(self.net.parameters()).device
        result: list[list[Reading]] = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                part = torch.from_numpy(images[start : start + batch]).to(device).permute(0, 3, 1, 2).float()
                part = F.adaptive_avg_pool2d(part / 127.5 - 1, self.config.size)
                result += find_objects(self.net(part), self.config, threshold)
        return result


def read_background(images: NDArray[np.uint8], backgrounds: dict[str, tuple[int, int, int]]) -> list[str]:
    """Nearest named colour of the median pixel along the border of each image, uint8 [B, H, W, 3].

    Raises:
        ValueError: there are no named colours, or the images have another shape.
    """
    if not backgrounds:
        raise ValueError("there are no named backgrounds to choose from")
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be [B, H, W, 3], got {list(images.shape)}")
    names, colours = list(backgrounds), np.asarray(list(backgrounds.values()), np.float32)
    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    middle = np.median(border.astype(np.float32), axis=1)
    nearest = ((middle[:, None] - colours) ** 2).sum(axis=-1).argmin(axis=1)
    return [names[i] for i in nearest]
