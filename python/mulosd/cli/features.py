"""Precomputed conditions of prompts, from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.conditioning import Condition
    from ..engine.family import Family


def read_features(path: Path, family: Family, prompts: int | None) -> Condition:
    """Conditions of a .npy file: [B, n, width] features, or [B, n] TA-Tok ids; without B when it is one prompt's.

    Args:
        path: the file, written by numpy.save.
        family: whose conditions they are.
        prompts: how many are wanted; None is any number.

    Raises:
        ValueError: there is no such file, it is no array, or it does not fit the family or the prompts.
    """
    import numpy as np
    import torch

    from ..files.arrays import read_npy

    array = read_npy(path, "an array of numbers (.npy, as numpy.save writes it) for --features")
    try:
        found = torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else np.ascontiguousarray(array))
    except (ValueError, TypeError) as error:
        raise ValueError(f"--features {path}: this is no array of numbers as numpy.save writes it ({error})") from error
    if found.dim() == (2 if found.is_floating_point() else 1):
        found = found[None]
    with torch.inference_mode():
        condition = family.conditioner.precomputed(found)
    if prompts is not None and len(condition) != prompts:
        raise ValueError(f"--features {path} holds conditions of {len(condition)} prompts, {prompts} were given")
    return condition
