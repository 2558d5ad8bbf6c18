"""The stages of training a family: which task, which checkpoint, and the export to a family folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.models.text import TextEncoderConfig
from ..engine.models.tokenizer import Tokenizer, TokenizerConfig
from ..engine.models.transformer import TransformerConfig
from ..engine.models.upsampler import ResamplerConfig
from .ar import ARTask, Phase
from .config import FamilyConfig
from .loop import LoopConfig, Task, train
from .tokenizer import TokenizerTask
from .upsampler import ResamplerTask

STAGES = ("tokenizer", "ar", "text", "upsampler", "reader")
NEEDS = {"tokenizer": (), "ar": ("tokenizer",), "text": ("tokenizer", "ar"), "upsampler": ("tokenizer",), "reader": ()}


def averaged(run: Path, stage: str) -> dict[str, Tensor]:
    """Averaged weights of a finished (or running) stage; ValueError says which command makes them."""
    path = run / f"{stage}.pt"
    if not path.exists():
        raise ValueError(f"{path} does not exist; run `mulosd train {stage}` with the same --run first")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["ema"]
    return state


def trained_tokenizer(config: FamilyConfig, run: Path) -> Tokenizer:
    """The tokenizer of a run, with its averaged weights."""
    tokenizer = Tokenizer(TokenizerConfig.from_dict(config.section("tokenizer")["model"]))
    tokenizer.load_state_dict(averaged(run, "tokenizer"))
    return tokenizer.eval()


def model_configs(config: FamilyConfig) -> tuple[TransformerConfig, TextEncoderConfig]:
    """Sizes of the AR model and of its text encoder, with what follows from the other sections filled in."""
    section = config.section("ar")
    text = TextEncoderConfig.from_dict({**section["text"], "vocab_size": config.vocabulary().size})
    model = TransformerConfig.from_dict(
        {
            **section["model"],
            "vocab_size": config.section("tokenizer")["model"]["codebook_size"],
            "cond_len": text.length,
            "cond_dim": text.dim,
            "grids": section["grids"],
        }
    )
    return model, text


def resampler_configs(config: FamilyConfig) -> list[ResamplerConfig]:
    """Every latent resampler of the family."""
    section = config.section("upsampler")
    dim = config.section("tokenizer")["model"]["code_dim"]
    return [ResamplerConfig(a, b, code_dim=dim, **section["model"]) for a, b in section["pairs"]]


def build_task(stage: str, config: FamilyConfig, run: Path) -> Task:
    """The task of a stage, its inputs taken from the run."""
    section: dict[str, Any] = {k: v for k, v in config.section(stage).items() if k not in ("loop", "model")}
    if stage == "tokenizer":
        model = TokenizerConfig.from_dict(config.section(stage)["model"])
        return TokenizerTask(model, config.source(), **section)
    if stage == "reader":
        from .reader import ReaderTask

        return ReaderTask.from_config(config)
    tokenizer = trained_tokenizer(config, run)
    if stage == "upsampler":
        return ResamplerTask(resampler_configs(config), tokenizer, config.source(), batch=section["batch"])
    ar, text = model_configs(config)
    options = config.section("ar")
    task = ARTask(
        ar,
        text,
        config.vocabulary(),
        tokenizer,
        config.source(),
        [Phase.from_dict(p) for p in options["phases"]],
        cond_dropout=options.get("cond_dropout", 0.1),
        token_noise=options.get("token_noise", 0.0),
        text_only=stage == "text",
    )
    if stage == "text":
        task.module.load_state_dict(averaged(run, "ar"))
    return task


def run_stage(
    stage: str, config_path: Path, run: Path, *, device: str = "cpu", steps: int | None = None
) -> dict[str, Tensor]:
    """Train one stage of a family, resuming from `run` when it holds a checkpoint of that stage.

    Args:
        stage: one of `STAGES`; `text` retrains the text encoder with the AR model frozen.
        config_path: the family's YAML file.
        run: folder of checkpoints and logs.
        device: a torch device.
        steps: overrides the file's number of steps.

    Raises:
        ValueError: unknown stage or section, or an earlier stage is missing.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; choose one of {', '.join(STAGES)}")
    config = FamilyConfig.load(config_path)
    loop = config.loop(stage)
    if steps is not None:
        loop = LoopConfig(**{**loop.__dict__, "steps": steps, "decay": min(loop.decay, steps)})
    torch.manual_seed(config.seed)
    task = build_task(stage, config, run)
    return train(task, loop, run, seed=config.seed, name=stage, device=device)


def load_averaged(module: nn.Module, run: Path, stage: str) -> nn.Module:
    """Put a stage's averaged weights into a module and freeze it."""
    module.load_state_dict(averaged(run, stage))
    return module.eval().requires_grad_(False)
