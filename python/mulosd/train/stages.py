"""The stages of training a family: which task, which checkpoint, and the export to a family folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.conditioning import PhraseConditioner
from ..engine.family import Family, new_folder
from ..engine.models.text import TextEncoder, TextEncoderConfig
from ..engine.models.tokenizer import Tokenizer, TokenizerConfig
from ..engine.models.transformer import Transformer, TransformerConfig
from ..engine.models.upsampler import LatentResampler, ResamplerConfig
from .ar import ARTask, Phase
from .captions import CaptionsTask
from .config import FamilyConfig
from .loop import LoopConfig, Task, train
from .tokenizer import TokenizerTask
from .upsampler import ResamplerTask

STAGES = ("tokenizer", "captions", "ar", "text", "upsampler", "reader")


def averaged(run: Path, stage: str) -> dict[str, Tensor]:
    """Averaged weights of a finished (or running) stage; ValueError says which command makes them."""
    path = run / f"{stage}.pt"
    if not path.exists():
        raise ValueError(f"{path} does not exist; run `mulosd train {stage}` with the same --run first")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["ema"]
    return state


def trained_tokenizer(config: FamilyConfig, run: Path) -> Tokenizer:
    """The tokenizer of a run, with its averaged weights, or that of the family to start from when the run has none."""
    start = initial_family(config)
    if start is not None and not (run / "tokenizer.pt").exists():
        return own_tokenizer(start)
    tokenizer = Tokenizer(TokenizerConfig.from_dict(config.section("tokenizer")["model"]))
    tokenizer.load_state_dict(averaged(run, "tokenizer"))
    return tokenizer.eval()


def own_tokenizer(family: Family) -> Tokenizer:
    """The tokenizer of a family that was trained here; ValueError for a converted one."""
    if not isinstance(family.tokenizer, Tokenizer):
        raise ValueError(f"init: family {family.name!r} was converted, not trained; train on from one that was trained")
    return family.tokenizer


def initial_family(config: FamilyConfig) -> Family | None:
    """The family named by `init`, whose models training starts from."""
    return Family.load(config.resolve(config.values["init"])) if "init" in config.values else None


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
    tokens = config.section("tokenizer")["model"]
    sizes = {"code_dim": tokens["code_dim"], "vocab_size": tokens["codebook_size"]}
    return [ResamplerConfig(a, b, **sizes, **section["model"]) for a, b in section["pairs"]]


def build_task(stage: str, config: FamilyConfig, run: Path) -> Task:
    """The task of a stage, its inputs taken from the run."""
    section: dict[str, Any] = {k: v for k, v in config.section(stage).items() if k not in ("loop", "model")}
    if stage == "tokenizer":
        model = TokenizerConfig.from_dict(config.section(stage)["model"])
        return TokenizerTask(model, config.source(), **section)
    if stage == "reader":
        from .reader import ReaderTask

        return ReaderTask.from_config(config)
    if stage == "captions":
        return CaptionsTask(model_configs(config)[1], config.vocabulary(), config.scenes(), **section)
    tokenizer = trained_tokenizer(config, run)
    if stage == "upsampler":
        options = {k: v for k, v in section.items() if k != "pairs"}
        return ResamplerTask(resampler_configs(config), tokenizer, config.source(), **options)
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
        entropy_weight=options.get("entropy_weight", 0.0),
        text_only=stage == "text",
    )
    if stage == "text":
        task.module.load_state_dict(averaged(run, "ar"))
    else:
        start = initial_family(config)
        if start is not None:
            start_from(start, task, text=not (run / "captions.pt").exists())
        if (run / "captions.pt").exists():
            own = {k.removeprefix("text."): v for k, v in averaged(run, "captions").items() if k.startswith("text.")}
            task.text.load_state_dict(own)
    return task


def start_from(family: Family, task: ARTask, *, text: bool = True) -> None:
    """Start the AR model, and with `text` the text encoder, from those of a family of the same sizes and vocabulary.

    Raises:
        ValueError: the family's sizes or words differ from the training file's.
    """
    if family.vocabulary.to_dict() != task.vocabulary.to_dict():
        raise ValueError(f"init: family {family.name!r} has other words than this training file")
    if family.ar.config != task.ar.config or (text and family.text.config != task.text.config):
        raise ValueError(f"init: family {family.name!r} has other sizes than this training file: {family.ar.config}")
    task.ar.load_state_dict(family.ar.state_dict())
    if text:
        task.text.load_state_dict(family.text.state_dict())


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


def export(config_path: Path, run: Path, output: Path) -> Path:
    """Assemble the trained stages of a run into a family folder, which appears whole or not at all.

    A family of scenes also gets its sprite sheet and, once trained, its reader. The family still needs
    `mulosd calibrate`.

    Raises:
        ValueError: a stage is missing from the run, or `output` exists already.
    """
    config = FamilyConfig.load(config_path)
    ar, text = model_configs(config)
    encoder, transformer = TextEncoder(text), Transformer(ar)
    for stage in ("ar", "text"):
        if stage == "ar" or (run / f"{stage}.pt").exists():
            load_averaged(nn.ModuleDict({"text": encoder, "ar": transformer}), run, stage)
    resamplers = {(p.source, p.target): LatentResampler(p) for p in resampler_configs(config)}
    load_averaged(nn.ModuleDict({m.config.name: m for m in resamplers.values()}), run, "upsampler")
    metadata: dict[str, Any] = {
        "name": config.name,
        "sampling": config.values.get("sampling", {}),
        "calibration": {},
    }
    scenes = config.data["kind"] == "scenes"
    if scenes:
        d = config.scenes()
        metadata["scenes"] = {**d.__dict__, "mix": list(d.mix)}
    family = Family(
        metadata,
        trained_tokenizer(config, run),
        PhraseConditioner(config.vocabulary(), encoder),
        [transformer],
        resamplers,
    )
    with new_folder(output) as folder:
        family.write(folder)
        if scenes:
            shutil.copyfile(config.resolve(config.data["sprites"]), folder / "sprites.png")
            if (run / "reader.pt").exists():
                export_reader(config, run, folder / "reader.safetensors")
    return output


def export_reader(config: FamilyConfig, run: Path, path: Path) -> None:
    """Write the trained reader of a run to a safetensors file."""
    from ..eval.reader import Reader
    from .reader import ReaderTask

    net = ReaderTask.from_config(config).net
    load_averaged(net, run, "reader")
    Reader(net).save(path)
