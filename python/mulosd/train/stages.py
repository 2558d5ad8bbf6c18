"""The stages of training a family: one command and one checkpoint each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from .sources import Progress, check_folder
from .srgan import srgan_task
from .tokenizer import tokenizer_config, tokenizer_task
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


# They say what an image is to show; other stages never read captions.
CAPTIONED = ("ar", "text", "eagle")


def check_data(stages: Sequence[str], config: TrainingFile, progress: Progress | None = None) -> None:
    """Check the images of a folder, and their captions where a stage needs them, before stages train on them.

    Args:
        stages: that are to be run.
        config: the training file; data of other kinds are checked as they are loaded.
        progress: called with (what, done, total).

    Raises:
        ValueError: images cannot be read, or are smaller than the largest grid; up to ten are named.
    """
    if config.data["kind"] != "folder":
        return
    sides = (
        [int(side) for side in config.section("tokenizer").get("batch") or ()] if "tokenizer" in config.values else []
    )
    start = config.initial_family()
    patch = tokenizer_config(config).patch if start is None else start.patch
    ar = config.values.get("ar")
    grids = ar.get("grids") if isinstance(ar, dict) else None
    sides += [int(grid) * patch for grid in grids or ()]
    captions = any(stage in CAPTIONED for stage in stages)
    check_folder(config.resolve(config.data["path"]), max(sides, default=1), captions, progress)


def run_stage(
    stage: str,
    config_path: Path,
    run: Path,
    *,
    device: str = "cpu",
    steps: int | None = None,
    variant: str | None = None,
    checked: bool = False,
) -> dict[str, Tensor]:
    """Train one stage of a family, resuming from `run` when it holds a checkpoint of that stage.

    Args:
        stage: one of `STAGES`; `text` retrains the text encoder with the AR model frozen.
        config_path: the family's YAML file.
        run: folder of checkpoints and logs.
        device: a torch device.
        steps: overrides the file's number of steps; `classifier` has none.
        checked: the images of a folder were checked already (`check_data`).
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
    if not checked:
        check_data((stage,), config)
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
