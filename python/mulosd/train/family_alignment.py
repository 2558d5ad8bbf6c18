"""A finished family with a part aligned on what the family itself draws, as a new family folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.family import scene_config, sprites
from ..data.scenes import Renderer
from ..engine.family import Family, store_resamplers
from ..engine.family_config import change, write_json
from ..engine.models.upsampler import LatentResampler
from ..engine.weights import new_folder, save_part
from .align import AlignTask
from .config import TrainingFile
from .distill import DistillTask, with_own_drafter
from .loop import LoopConfig, train
from .own_samples import training_prompts
from .sources import FolderSource, ImageSource, SceneSource


def pictures_of(
    family: Family, images: Path | None = None, held_out: bool = False, config: Path | None = None
) -> ImageSource | None:
    """Real captioned pictures for a family.

    Args:
        family: whose scenes are taken where neither of the following is given.
        images: a folder of captioned pictures.
        held_out: the split that training never saw, instead of the one that it did.
        config: the training file (YAML) whose data they are.

    Returns:
        None where there are none.

    Raises:
        ValueError: both a folder and a training file, or no such pictures.
    """
    if images is not None and config is not None:
        raise ValueError("--images and --config both name pictures: give one of them")
    if config is not None:
        return TrainingFile.load(config).source(held_out)
    if images is not None:
        return FolderSource(images, held_out)
    if "scenes" not in family.config.facts:
        return None
    return SceneSource(Renderer(scene_config(family), sprites(family)), held_out)


def align_upsampler(
    folder: str | Path,
    output: Path,
    run: Path,
    *,
    scale: int | None = None,
    images: Path | None = None,
    config: Path | None = None,
    prompts: Sequence[str] = (),
    steps: int = 400,
    lr: float = 3e-4,
    device: str = "cpu",
    save_every: int = 50,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Train a family's latent up-sampler on the drafter's drafts under the target's likelihood; see `AlignTask`.

    Args:
        folder: a family by name or folder; it is left as it is.
        output: the new folder, which appears whole or not at all; it has yet to be calibrated.
        run: folder of the checkpoint and the log; a run that it holds is resumed.
        scale: None is the largest.
        images: captioned pictures that keep the up-sampler to what pictures look like; a family of scenes has its own.
        config: the training file that names them, instead of `images`.
        prompts: what to draft for; empty takes classes, or the pictures' captions.
        steps, lr, device, save_every, seed: of training.
        options: of `AlignTask`.

    Raises:
        ValueError: there is no such family, scale, latent up-sampler or folder, nothing to draft for, or `output`
            exists already.
    """
    family = openable(folder, output)
    source = pictures_of(family, images, config=config)
    ratio = own_scale(family) if scale is None else scale
    task = AlignTask(family, ratio, training_prompts(family, source, prompts), source, seed=seed, **options)
    averaged = train(task, loop(steps, lr, device, save_every), run, seed=seed, name="align", device=device)
    aligned = LatentResampler(replace(task.resampler.config, temperature=task.temperature))
    aligned.load_state_dict(averaged)
    with new_folder(output) as new:
        copied(family, new)
        store_resamplers(new, [aligned])
        forget(family, new, ratio)
    return output


def distill_drafter(
    folder: str | Path,
    output: Path,
    run: Path,
    *,
    scale: int | None = None,
    images: Path | None = None,
    prompts: Sequence[str] = (),
    steps: int = 400,
    lr: float = 3e-5,
    device: str = "cpu",
    save_every: int = 50,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Train a family's drafter towards its target; see `DistillTask`. The drafter becomes a network of its own.

    Arguments, but for `config`, and errors are those of `align_upsampler`; `options` are those of `DistillTask`.
    """
    before = openable(folder, output)
    ratio = own_scale(before) if scale is None else scale
    family = with_own_drafter(before, before.drafter_grid(ratio))
    grid, target = before.drafter_grid(ratio), before.grids[-1]
    latent = {(grid, target), (target, grid)} <= set(before.resamplers)
    task = DistillTask(
        family,
        ratio,
        training_prompts(before, pictures_of(before, images), prompts),
        method="latent" if latent else "pixel",
        seed=seed,
        **options,
    )
    averaged = train(task, loop(steps, lr, device, save_every), run, seed=seed, name="distill", device=device)
    task.module.load_state_dict(averaged)
    with new_folder(output) as new:
        copied(before, new)
        kept = {id(model): name for name, model in before._models().items()}
        parts = family._models()
        for name in set(kept.values()) - set(parts):
            (new / f"{name}.safetensors").unlink()
        for name, model in parts.items():
            if id(model) not in kept:
                save_part(name, model, new)
        write_json(new, family.describe())
        forget(family, new, ratio)
    return output


def openable(folder: str | Path, output: Path) -> Family:
    """The family to start from; ValueError where the result could not be written in the end."""
    if output.exists():
        raise ValueError(f"--output {output} exists already; choose a new folder or remove it")
    return Family.load(folder)


def own_scale(family: Family) -> int:
    """The scale that is aligned where none is asked for."""
    if family.scale is None:
        raise ValueError(f"family {family.name!r} has no grid that divides its largest: it cannot draft")
    return family.scale


def loop(steps: int, lr: float, device: str, save_every: int) -> LoopConfig:
    """A short training that starts from finished weights."""
    return LoopConfig(
        steps,
        lr,
        warmup=min(20, steps),
        decay=max(1, steps // 2),
        ema=0.98,
        weight_decay=0.0,
        precision="bf16" if torch.device(device).type == "cuda" else "fp32",
        log_every=10,
        save_every=save_every,
        threads=torch.get_num_threads(),
    )


def copied(family: Family, folder: Path) -> None:
    """Copy the files of a family, but for what describes it to people, into an empty folder."""
    if family.path is None:
        raise ValueError(f"family {family.name!r} was not loaded from a folder")
    for path in family.path.iterdir():
        if path.is_file() and path.name not in ("README.md", "contact_sheet.png"):
            shutil.copyfile(path, folder / path.name)


def forget(family: Family, folder: Path, scale: int) -> None:
    """Drop the calibration of a scale, which was measured on other drafts."""
    kept = {key: c.to_dict() for key, c in family.config.calibrations.items() if c.scale != scale}
    change(folder, lambda _: {"calibration": kept})
