"""Weights of a family's parts: safetensors files, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .atomic import partial_folder, take_name, told
from .file_kind import check_kind
from .paths import expanded


def weights_file(folder: Path, name: str) -> Path:
    """The file of one part of a family; ValueError when it is missing."""
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder} is not a whole family: {file.name} is missing")
    return file


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file by name, and its metadata; ValueError for another, cut or damaged file."""
    with opened(file) as source:
        return {name: source.get_tensor(name) for name in source.keys()}, dict(source.metadata() or {})  # noqa: SIM118


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file by name, from its header alone; errors as of `read_tensors`."""
    with opened(file) as source:
        return {name: tuple(source.get_slice(name).get_shape()) for name in source.keys()}  # noqa: SIM118


def read_metadata(file: Path) -> dict[str, str]:
    """What a file says of itself, from its header alone; errors as of `read_tensors`."""
    with opened(file) as source:
        return dict(source.metadata() or {})


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """An open safetensors file; errors name the file and say what it is."""
    check_kind(file, ("safetensors",), "a safetensors file")
    try:
        with safe_open(expanded(file), framework="pt") as source:
            yield source
    except Exception as error:  # kinds of numbers that torch lacks end in KeyError and AttributeError, among others
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise ValueError(f"{file} is no safetensors file that can be read ({reason}): download it again") from error


def check_shapes(file: Path, module: nn.Module, described: str = "family.json") -> None:
    """ValueError unless a file holds the tensors of a module, by names and shapes: its header alone is read."""
    found, wanted = read_shapes(file), {name: tuple(t.shape) for name, t in module.state_dict().items()}
    wrong = [f"lacks {name}" for name in wanted if name not in found]
    wrong += [f"has {name}, which is not asked for" for name in found if name not in wanted]
    wrong += [
        f"has {list(found[name])} for {name}, not {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{file} does not fit {described}: it {', '.join(wrong[:3])}{more}")


def read_part(file: Path, module: nn.Module, dtype: torch.dtype) -> None:
    """Put the weights of a file into a module that has none yet (meta tensors); ValueError when they do not fit."""
    check_shapes(file, module)
    try:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in read_tensors(file)[0].items()}
        damaged = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
        if damaged:
            raise ValueError(f"it holds NaN or infinity in {', '.join(damaged[:3])}")
        module.load_state_dict(state, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} does not fit family.json: {str(error).splitlines()[0]}") from error
    module.requires_grad_(False)


def write_weights(folder: Path, name: str, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write one part of a family, in place of the one that may be there, and return its file."""
    file = folder / f"{name}.safetensors"
    write_tensors(file, state, metadata)
    return file


def write_tensors(file: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().contiguous().cpu()
        # The format holds no two tensors of one memory, as tied weights of a checkpoint may be.
        tensors[key] = tensor.clone() if tensor.untyped_storage().data_ptr() in stored else tensor
        stored.add(tensor.untyped_storage().data_ptr())
    # Its writer takes a name and makes a file of its own there; bytes would take the memory of all weights again.
    target = expanded(file).resolve()
    with partial_folder(target) as temporary:
        made = temporary / target.name
        try:
            save_file(tensors, made, metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(file)) from error
        made.chmod(0o644)  # safetensors writes for the owner alone
        with told(file, made), made.open("rb+") as written:
            os.fsync(written.fileno())
            take_name(made, target)


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
    folder = expanded(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose a new folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(folder) as temporary:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.replace(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ValueError(f"{folder} was made by another process meanwhile; choose a new folder") from error
