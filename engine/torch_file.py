"""Reading of torch files without running what is in them, and without more work than their size asks for."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .file_kind import check_kind
from .paths import expanded

KINDS = ("torch", "old torch")
# Of nested values; training scripts need far less.
DEPTH = 32
# Bytes of all tensors together, by bytes of the file: weights that are tied share theirs.
SHARED = 4


def read_torch(
    path: str | Path,
    what: str = "a torch checkpoint",
    *,
    allowed: Sequence[Any] = (),
    device: torch.device | str = "cpu",
    mapped: bool = True,
) -> Any:
    """The contents of a torch file.

    Args:
        path: the file, whatever its suffix.
        what: is wanted, for messages.
        allowed: what may be built besides tensors and plain values.
        device: of the tensors.
        mapped: leave tensors on disk until they are used, where the format of the file allows that.

    Raises:
        ValueError: the file is something else, cut or damaged, asks for code to be run, or holds tensors that are
            larger than itself. The message names the file, in one line.
    """
    file = expanded(path)
    kind = check_kind(file, KINDS, what)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            if kind.name == "torch" and mapped and file.suffix != ".safetensors":
                content = torch.load(file, map_location=device, weights_only=True, mmap=True)
            else:
                # By the file, not by its name: some versions of torch go by the suffix, and files that were written
                # before 1.6 cannot be mapped.
                with file.open("rb") as source:
                    content = torch.load(source, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(file, what, str(error))) from error
    except Exception as error:  # damaged files make torch raise whatever comes, KeyError and AssertionError included
        reason = short(str(error)) or type(error).__name__
        raise ValueError(f"{file} is no whole torch file ({reason}): download it again, or copy it again") from error
    check_sizes(file, content)
    return content


def refusal(file: Path, what: str, reason: str) -> str:
    """Why a pickle was not loaded; torch's own words advise to load it without a check."""
    named = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(
        r"[Uu]nsupported (?:class|global|function):? ([\w.]+)", reason
    )
    if named is None:
        return f"{file} is not {what}: its pickle is damaged or holds what no weights are; download it again"
    return (
        f"{file} was refused: it asks for {named[1]} to be loaded, and {what} may hold tensors and plain values alone, "
        f"since anything else could run code; if you trust its origin, save its state dict anew, best as safetensors"
    )


def short(text: str, limit: int = 160) -> str:
    """The first line of a text, cut; without advice of torch to turn its check off."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    return "" if "weights_only" in line else line[:limit]


def check_sizes(file: Path, content: Any) -> None:
    """ValueError for tensors that are views of less memory than they pretend to have, or that together have more than
    the file can hold: a copy of them would take far more than the file."""
    size, total = file.stat().st_size, 0
    for name, tensor in tensors_of(file, content):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise ValueError(f"{file}: {name} is a sparse, quantized or nested tensor; save it as an ordinary one")
        held = tensor.numel() * tensor.element_size()
        total += held
        if held > tensor.untyped_storage().nbytes() or total > SHARED * size:
            raise ValueError(
                f"{file}: {name} has {held:,} bytes by its shape {list(tensor.shape)}, which the file of {size:,} "
                f"bytes does not hold; save the tensors themselves (.contiguous().clone())"
            )


def tensors_of(file: Path, content: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested values with their places; ValueError for values that hold themselves or are nested deep."""
    level: list[tuple[str, Any]] = [("the content", content)]
    seen: set[int] = set()
    for _ in range(DEPTH):
        inner: list[tuple[str, Any]] = []
        for where, value in level:
            if isinstance(value, Tensor):
                yield where, value
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
                # What is shared is looked at once: lists of lists of the same list have no end.
                seen.add(id(value))
                items = value.items() if isinstance(value, Mapping) else enumerate(value)
                inner += [(short(str(key), 80) if isinstance(key, (str, int)) else where, v) for key, v in items]
        level = inner
        if not level:
            return
    raise ValueError(f"{file} is nested more than {DEPTH} deep, as no weights are")
