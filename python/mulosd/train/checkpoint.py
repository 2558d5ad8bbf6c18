"""Checkpoints of a run: one file a stage, with its averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def checkpoint(run: Path, stage: str) -> dict[str, Any]:
    """The checkpoint of a finished (or running) stage; ValueError when there is none."""
    path = run / f"{stage}.pt"
    if not path.exists():
        command = stage.replace("upsampler-", "upsampler --variant ", 1)
        raise ValueError(f"{path} does not exist; run `mulosd train {command}` with the same --run first")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def averaged(run: Path, stage: str) -> dict[str, Tensor]:
    """Averaged weights of a finished (or running) stage, the best if it validates; ValueError when there are none."""
    state = checkpoint(run, stage)
    weights: dict[str, Tensor] = (state.get("best") or state)["ema"]
    return weights


def load_averaged(module: nn.Module, run: Path, stage: str) -> nn.Module:
    """Put a stage's averaged weights into a module and freeze it."""
    module.load_state_dict(averaged(run, stage))
    return module.eval().requires_grad_(False)
