"""Checkpoints of a run: one file a stage, with its averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.atomic import atomic
from ..engine.file_kind import identify
from ..engine.lock import locked
from ..engine.paths import expanded
from ..engine.torch_file import read_torch

KEYS = ("module", "ema", "optimizers", "step")


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint; ValueError for a file that is none, or that is damaged."""
    what = identify(path).words
    try:
        state = read_torch(path, "a checkpoint of training", device=device, mapped=False)
    except ValueError as error:
        raise ValueError(
            f"{path} is no checkpoint of training, or damaged (it is {what}); remove it to start again"
        ) from error
    wrong = f"{path} is no checkpoint of training, which has {', '.join(KEYS)}; remove it to start again"
    if not isinstance(state, dict) or any(key not in state for key in KEYS):
        raise ValueError(wrong)
    states = [state["module"], state["ema"], state.get("task", {})]
    if isinstance(state.get("best"), dict):
        states.append(state["best"].get("ema"))
    if not all(isinstance(s, dict) and all(isinstance(v, Tensor) for v in s.values()) for s in states):
        raise ValueError(f"{wrong} (its weights are no tensors by name)")
    if not isinstance(state["step"], int) or state["step"] < 0 or not isinstance(state["optimizers"], list):
        raise ValueError(f"{wrong} (its step or its optimisers are none)")
    return state


def write(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the old file or the new one."""
    with atomic(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # What torch says of a full disk is a position in its archive.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


@contextmanager
def alone(run: Path, name: str) -> Iterator[Path]:
    """The folder of a run, made if it is missing, while no other process trains this stage into it.

    A folder that was made for nothing goes again.

    Raises:
        ValueError: another process does.
    """
    run = expanded(run)
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run, f"a training of {name} in", name=name):
            yield run
    finally:
        if made:
            with suppress(OSError):
                run.rmdir()


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Put what a checkpoint holds into networks; what does not fit is an error that names the file."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2]) or type(error).__name__
        raise ValueError(
            f"{path} does not fit what the training file asks for ({reason}): "
            f"train with the sizes that it was made with, or remove it to start again"
        ) from error


def checkpoint(run: Path, stage: str) -> dict[str, Any]:
    """The checkpoint of a finished (or running) stage; ValueError when there is none."""
    path = expanded(run) / f"{stage}.pt"
    if not path.exists():
        command = stage.replace("upsampler-", "upsampler --variant ", 1)
        raise ValueError(f"{path} does not exist; run `mulosd train {command}` with the same --run first")
    return read(path)


def averaged(run: Path, stage: str) -> dict[str, Tensor]:
    """Averaged weights of a finished (or running) stage, the best if it validates; ValueError when there are none."""
    state = checkpoint(run, stage)
    with fitting(run / f"{stage}.pt"):
        weights: dict[str, Tensor] = (state.get("best") or state)["ema"]
    return weights


def load_averaged(module: nn.Module, run: Path, stage: str) -> None:
    """Put a stage's averaged weights into a module and freeze it."""
    weights = averaged(run, stage)
    with fitting(run / f"{stage}.pt"):
        module.load_state_dict(weights)
    module.eval().requires_grad_(False)


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part of a module, by their names in it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
