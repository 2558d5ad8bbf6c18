"""Checkpoints of a run: one file a stage, with its averaged weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KEYS = ("module", "ema", "optimizers", "step")


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint; ValueError for a file that is none, or that is damaged."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is no checkpoint of training, or damaged; remove it to start again") from error
    if not isinstance(state, dict) or any(key not in state for key in KEYS):
        raise ValueError(f"{path} is no checkpoint of training, which has {', '.join(KEYS)}; remove it to start again")
    return state


def write(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def checkpoint(run: Path, stage: str) -> dict[str, Any]:
    """The checkpoint of a finished (or running) stage; ValueError when there is none."""
    path = run / f"{stage}.pt"
    if not path.exists():
        command = stage.replace("upsampler-", "upsampler --variant ", 1)
        raise ValueError(f"{path} does not exist; run `mulosd train {command}` with the same --run first")
    return read(path)


def averaged(run: Path, stage: str) -> dict[str, Tensor]:
    """Averaged weights of a finished (or running) stage, the best if it validates; ValueError when there are none."""
    state = checkpoint(run, stage)
    weights: dict[str, Tensor] = (state.get("best") or state)["ema"]
    return weights


def load_averaged(module: nn.Module, run: Path, stage: str) -> None:
    """Put a stage's averaged weights into a module and freeze it."""
    module.load_state_dict(averaged(run, stage))
    module.eval().requires_grad_(False)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part of a module, by their names in it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
