"""Reading of checkpoint files: the containers that projects wrap their weights in, and nothing that runs code.

Accepted are safetensors files and torch files that hold a bare state dict (FSDP), `{"model": …}` (DDP; with optimizer,
steps and args beside it), `{"module": …}` (DeepSpeed), `{"state_dict": …}`, or Tar's
`{"model": {"name", "args", "sd"}}`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..engine.file_kind import check_kind
from ..engine.paths import expanded
from ..engine.torch_file import KINDS, read_torch, short
from ..engine.weights import read_tensors

# Training scripts pickle their options beside the weights. Nothing else that pickle can name is ever called.
ALLOWED: list[Any] = [argparse.Namespace]
WRAPPERS = ("model", "module", "state_dict")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file by name, with the constructor's or the training's arguments where the file has them.

    Attributes:
        path: the file.
        tensors: by name; from a torch file they are mapped, not read, until they are used.
        metadata: of a safetensors file.
        args: plain values by name.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint file; what it is tells its content, not its suffix.

    Raises:
        ValueError: there is no such file, it is something else (the message says what), it is cut short, it holds no
            weights, or it asks for code to be run.
    """
    file = expanded(path)
    kind = check_kind(file, ("safetensors", *KINDS), "a checkpoint (safetensors, .pt, .pth)")
    if kind.name == "safetensors":
        return Checkpoint(file, *read_tensors(file))
    return unwrapped(file, read_torch(file, "a checkpoint", allowed=ALLOWED))


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
            kind += " of " + (", ".join(repr(short(str(key), 40)) for key in list(content)[:6]) or "nothing")
        raise ValueError(
            f"{file} holds no weights that are known: expected a state dict, bare or under "
            f"{', '.join(map(repr, WRAPPERS))}, or Tar's 'model' with 'sd'; found {kind}"
        )
    tensors = {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
    return Checkpoint(file, tensors, args=args)


def is_state(value: Any) -> bool:
    """Whether a value maps names to tensors."""
    return isinstance(value, Mapping) and bool(value) and any(isinstance(v, Tensor) for v in value.values())


def plain(args: Any) -> dict[str, Any]:
    """Arguments as a dictionary."""
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else {}


def check_matrices(path: Path, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """ValueError unless those of the named tensors that are there have as many dimensions as weights do: the biases and
    the tables of a single row, which a name may also be of, have one."""
    for name in names:
        if name in tensors and tensors[name].dim() != (1 if name.endswith("bias") else 2):
            raise ValueError(f"{path} is no whole model: {name} is {list(tensors[name].shape)}")


def count_parts(path: Path, tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many parts (layers, levels, blocks) are numbered behind a prefix, by the names that are there.

    A network is built of so many: a single name with a large number must not make a large network.

    Raises:
        ValueError: the numbers are not 0, 1, 2 and so on.
    """
    found = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
    for number in range(len(found)):
        if str(number) not in found:
            odd = min(found - {str(n) for n in range(len(found))}, key=lambda text: (len(text), text))
            raise ValueError(
                f"{path} has {len(found)} parts {prefix}N, {prefix}{short(odd, 40)} among them, but "
                f"{prefix}{number} is missing: it is no whole model"
            )
    return len(found)


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
