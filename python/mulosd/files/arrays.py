"""The one reader of arrays of numpy, .npy and .npz: no pickles, and no memory for what a file does not hold."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.file_kind import check_kind
from ..engine.paths import expanded

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, keys: Sequence[str], what: str) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file by name.

    Args:
        path: the file.
        keys: the arrays that are wanted; others are not read.
        what: the file is to be, for messages, such as "an archive of photos".

    Raises:
        ValueError: there is no such file, it is something else, damaged or cut, or it lacks an array.
    """
    file = expanded(path)
    check_kind(file, ("npz",), what)
    try:
        with zipfile.ZipFile(file) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            missing = sorted(set(keys) - set(members))
            if missing:
                raise ValueError(f"it lacks the arrays {missing}")
            if sum(members[key].compress_size for key in keys) > file.stat().st_size:
                raise ValueError("its parts lie over one another")
            found = {}
            for key in keys:
                with archive.open(members[key]) as source:
                    check_header(source, key, members[key].file_size)
                with archive.open(members[key]) as source:
                    found[key] = np.lib.format.read_array(source, allow_pickle=False)
            return found
    except Exception as error:  # damaged archives raise whatever comes
        raise ValueError(f"{file} is not {what}, or it is damaged: {reason(error)}") from error


def read_npy(path: Path, what: str) -> NDArray[Any]:
    """The array of an .npy file; errors as of `read_npz`."""
    file = expanded(path)
    check_kind(file, ("npy",), what)
    try:
        with file.open("rb") as source:
            check_header(source, "it", file.stat().st_size)
            source.seek(0)
            found: NDArray[Any] = np.lib.format.read_array(source, allow_pickle=False)
            return found
    except Exception as error:
        raise ValueError(f"{file} is not {what}, or it is damaged: {reason(error)}") from error


def check_header(source: IO[bytes], name: str, size: int) -> None:
    """ValueError for objects of Python, and for an array that `size` bytes cannot hold."""
    version = np.lib.format.read_magic(source)
    if version not in HEADERS:
        raise ValueError(f"{name} is of version {version[0]}.{version[1]} of the format, which plain arrays are not")
    shape, _, dtype = HEADERS[version](source)
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects of Python, which could run code")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} is {list(shape)} of {dtype} by its header, which its {size:,} bytes do not hold")


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0][:160] if str(error).strip() else type(error).__name__
