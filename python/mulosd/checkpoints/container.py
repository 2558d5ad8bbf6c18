"""Reading of checkpoint files: the containers that projects wrap their weights in, and nothing that runs code.

Accepted are safetensors files and torch files that hold a bare state dict (FSDP), `{"model": …}` (DDP; with optimizer,
steps and args beside it), `{"module": …}` (DeepSpeed), `{"state_dict": …}`, or Tar's
`{"model": {"name", "args", "sd"}}`.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Training scripts pickle their options beside the weights. Nothing else that pickle can name is ever called.
ALLOWED: list[Any] = [argparse.Namespace]
WRAPPERS = ("model", "module", "state_dict")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file by name, with the constructor's or the training's arguments where the file has them.

    Attributes:
        path: the file.
        tensors: by name; from a torch file they are mapped, not read, until they are used.
        args: plain values by name.
        metadata: of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    args: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        ValueError: there is no such file, it is cut short, it holds no weights, or it asks for code to be run.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no checkpoint file {file}")
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    return unwrapped(file, read_pickle(file))


def read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            return Checkpoint(file, tensors, metadata=dict(opened.metadata() or {}))
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}); fetch it again") from error


def read_pickle(file: Path) -> Any:
    """The contents of a torch file, with tensors mapped from disk where its format allows that."""
    with torch.serialization.safe_globals(ALLOWED):
        try:
            try:
                return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, ValueError) as error:
                # Files from before torch 1.6 are no zip archives and cannot be mapped.
                if "mmap" not in str(error):
                    raise
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(refusal(file, str(error))) from error
        except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"{file} cannot be read as a torch checkpoint ({reason}): it is cut short or another kind of file; "
                f"fetch it again"
            ) from error


def refusal(file: Path, reason: str) -> str:
    """Why a pickle was not loaded."""
    named = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"[Uu]nsupported (?:class|global):? ([\w.]+)", reason)
    if named is None:
        first = reason.strip().splitlines()[0] if reason.strip() else "damaged"
        return f"{file} is not a checkpoint that holds only weights ({first})"
    return (
        f"{file} was refused: it asks for {named[1]} to be loaded, and a checkpoint may hold tensors, plain values and "
        f"argparse.Namespace alone, since anything else could run code; if you trust its origin, save its state dict "
        f"anew"
    )


def unwrapped(file: Path, content: Any) -> Checkpoint:
    """The state dict inside whatever it is wrapped in."""
    args: dict[str, Any] = {}
    state = content
    if isinstance(content, Mapping):
        args |= plain(content.get("args"))
        found = next((content[w] for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if found is not None:
            state = found
        if isinstance(state, Mapping) and isinstance(state.get("sd"), Mapping):
            args |= plain(state.get("args"))
            state = state["sd"]
    if not is_state(state):
        kind = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            kind += " of " + (", ".join(map(repr, list(content)[:6])) or "nothing")
        raise ValueError(
            f"{file} holds no weights that are known: expected a state dict, bare or under "
            f"{', '.join(map(repr, WRAPPERS))}, or Tar's 'model' with 'sd'; found {kind}"
        )
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    return Checkpoint(file, tensors, args)


def is_state(value: Any) -> bool:
    """Whether a value maps names to tensors."""
    return isinstance(value, Mapping) and bool(value) and any(isinstance(v, Tensor) for v in value.values())


def plain(args: Any) -> dict[str, Any]:
    """Arguments as a dictionary."""
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else {}


def fit(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Check that tensors are those of a module, by name and shape.

    Args:
        tensors: what the file holds, ignorable names already dropped.
        wanted: the module's state dict; shapes alone are read.
        what: the model that was inferred.

    Raises:
        ValueError: lists every missing, unexpected and mis-shaped tensor.
    """
    missing = [k for k in wanted if k not in tensors]
    extra = [k for k in tensors if k not in wanted]
    shapes = [
        f"{k} is {list(tensors[k].shape)}, not {list(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    found = [
        f"{label}: {', '.join(names[:12])}" + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        for label, names in (("missing", missing), ("unexpected", extra), ("mis-shaped", shapes))
        if names
    ]
    if found:
        raise ValueError(f"{path} does not fit {what}; {'; '.join(found)}")
