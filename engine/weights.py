"""Weights of a family's parts: safetensors files, written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def weights_file(folder: Path, name: str) -> Path:
    """The file of one part of a family; ValueError when it is missing."""
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder} is not a whole family: {file.name} is missing")
    return file


def tensor_count(file: Path) -> int:
    """Number of tensors that a file holds, from its header alone; ValueError for what is no safetensors file."""
    try:
        with safe_open(file, "pt") as opened:
            return len(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def file_metadata(file: Path) -> dict[str, str]:
    """What a file says of itself; nothing where there is no such file, or it cannot be read."""
    try:
        with safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def read_part(file: Path, module: nn.Module, dtype: torch.dtype) -> None:
    """Put the weights of a file into a module that has none yet (meta tensors); ValueError when they do not fit."""
    try:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(file).items()}
        damaged = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if damaged:
            raise ValueError(f"it holds NaN or infinity in {', '.join(damaged[:3])}")
        module.load_state_dict(state, assign=True)
    except (RuntimeError, ValueError, SafetensorError, OSError) as error:
        raise ValueError(f"{file} does not fit family.json: {error}") from error
    module.requires_grad_(False)


def write_weights(folder: Path, name: str, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write one part of a family, in place of the one that may be there, and return its file."""
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, value in state.items():
        tensor = value.contiguous().cpu()
        # The format holds no two tensors of one memory, as tied weights of a checkpoint may be.
        tensors[key] = tensor.clone() if tensor.untyped_storage().data_ptr() in stored else tensor
        stored.add(tensor.untyped_storage().data_ptr())
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as temporary:
        path = Path(temporary) / f"{name}.safetensors"
        save_file(tensors, path, metadata)
        path.chmod(0o644)  # safetensors writes for the owner alone
        return path.replace(folder / path.name)


def save_part(
    name: str,
    module: nn.Module,
    folder: Path,
    *,
    half_encoder: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write the weights of one part of a family, in float16 but for what may not be rounded."""
    state = module.state_dict()
    # What decides which token an image gets is not rounded: near codes differ by less than float16 can tell,
    # and an encoder that differs from the one the AR model was trained with speaks another language.
    exact = ("codebook", "quant") if half_encoder else ("encoder.", "codebook", "quant")
    kept = {k for k in state if name == "tokenizer" and k.startswith(exact)}
    kept |= {k for k in state if k.endswith("counts")}
    halved = {k: v if k in kept or not v.is_floating_point() else v.half() for k, v in state.items()}
    return write_weights(folder, name, halved, metadata)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not."""
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose a new folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
