"""The stages of training a family: one command and one checkpoint each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..engine.paths import expanded
from .ar import ar_task, text_task
from .captions import captions_task
from .checkpoint import alone, averaged, fitting
from .classifier import train_classifier
from .config import TrainingFile
from .eagle import eagle_task
from .loop import Task, train
from .reader import reader_task
from .srgan import srgan_task
from .tokenizer import tokenizer_task
from .upsampler import checkpoint_name, resampler_task, varied

# What each stage trains, its inputs taken from the run.
TASKS: dict[str, Callable[[TrainingFile, Path], Task]] = {
    "tokenizer": tokenizer_task,
    "captions": captions_task,
    "ar": ar_task,
    "text": text_task,
    "upsampler": resampler_task,
    "srgan": srgan_task,
    "reader": reader_task,
    "eagle": eagle_task,
}
STAGES = (*TASKS, "classifier")


def run_stage(
    stage: str,
    config_path: Path,
    run: Path,
    *,
    device: str = "cpu",
    steps: int | None = None,
    variant: str | None = None,
) -> dict[str, Tensor]:
    """Train one stage of a family, resuming from `run` when it holds a checkpoint of that stage.

    Args:
        stage: one of `STAGES`; `text` retrains the text encoder with the AR model frozen.
        config_path: the family's YAML file.
        run: folder of checkpoints and logs.
        device: a torch device.
        steps: overrides the file's number of steps; `classifier` has none.
        variant: of the stage `upsampler`, trained further from the averaged weights of that stage.

    Raises:
        ValueError: unknown stage, section or variant, an earlier stage is missing, or another process trains this stage
            into `run`.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; choose one of {', '.join(STAGES)}")
    if variant is not None and stage != "upsampler":
        raise ValueError(f"the stage {stage} has no variants, only upsampler has; got {variant!r}")
    config = TrainingFile.load(config_path)
    if variant is not None:
        config = varied(config, variant)
    name = stage if variant is None else checkpoint_name(variant)
    loop = None if stage == "classifier" else config.loop(stage, steps)
    with alone(expanded(run), name) as run:
        if loop is None:
            reader = train_classifier(config, run, device=device)
            return {"weight": reader.weight, "bias": reader.bias}
        torch.manual_seed(config.seed)
        task = TASKS[stage](config, run)
        if variant is not None:
            start = averaged(run, stage)
            with fitting(run / f"{stage}.pt"):
                task.module.load_state_dict({k: start[k] for k in task.module.state_dict()})
        return train(task, loop, run, seed=config.seed, name=name, device=device)
