"""Amounts of memory on the command line."""

from __future__ import annotations

import os
import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_memory(text: str, option: str = "--memory") -> int:
    """Bytes of "24GiB", "16g" or "8000000000"; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise ValueError(f"{option} {text}: write a number with a unit, such as 24GiB or 16GB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def device_memory(device: str) -> int:
    """Bytes of a device's memory, all of it; ValueError when there is no such device."""
    import torch

    if torch.device(device).type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"--device {device}: torch sees no CUDA device; give --memory, such as 24GiB")
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def show_bytes(n: int) -> str:
    """Bytes for a person."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
