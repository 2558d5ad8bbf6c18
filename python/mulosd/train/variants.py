"""Variants of the latent up-samplers: the same start, trained further with other losses (`upsampler.variants`)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from ..engine.models.upsampler import LatentResampler, ResamplerConfig
from .checkpoint import checkpoint, load_averaged
from .config import TrainingFile
from .loop import LoopConfig
from .upsampler import ResamplerTask

OPTIONS = tuple(
    name for name, p in inspect.signature(ResamplerTask).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY
)
Resamplers = dict[tuple[int, int], LatentResampler]
KEYS = ("pairs", *OPTIONS, "loop")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def checkpoint_name(variant: str | None) -> str:
    """What the checkpoint and the log of a variant are called in the run; None is the up-samplers themselves."""
    return "upsampler" if variant is None else f"upsampler-{variant}"


def variant_names(config: TrainingFile) -> list[str]:
    """Variants of a training file, in its order."""
    return list(config.section("upsampler").get("variants") or {})


def varied(config: TrainingFile, name: str) -> TrainingFile:
    """The training file whose section `upsampler` is that of a variant.

    A variant states what differs from the section: `pairs` (some of them), options of `ResamplerTask`, and parts of
    `loop`. Sizes cannot differ, for it starts from weights of the section's own.

    Raises:
        ValueError: no such variant, or it states something else.
    """
    section = config.section("upsampler")
    known = variant_names(config)
    if name not in known:
        raise ValueError(
            f"{config.path}: there is no variant {name!r} of the up-samplers; upsampler.variants has "
            f"{', '.join(known) or 'none'}"
        )
    if not NAME.fullmatch(name):
        raise ValueError(f"{config.path}: the variant {name!r} names a file: use letters, digits, '.', '_' and '-'")
    where = f"{config.path}: upsampler.variants.{name}"
    stated = section.pop("variants")[name] or {}
    check_keys(where, stated, KEYS)
    check_keys(f"{where}.loop", stated.get("loop", {}), tuple(f.name for f in fields(LoopConfig)))
    missing = [pair for pair in stated.get("pairs", []) if pair not in section["pairs"]]
    if missing:
        raise ValueError(f"{where}: pairs {missing} are none of the section's, which are {section['pairs']}")
    loop = {**section.get("loop", {}), **stated.get("loop", {})}
    return TrainingFile({**config.values, "upsampler": {**section, **stated, "loop": loop}}, config.path)


def check_keys(where: str, stated: Any, known: tuple[str, ...]) -> None:
    if not isinstance(stated, dict):
        raise ValueError(f"{where} must be a mapping, got {stated!r}")
    unknown = [str(key) for key in stated if key not in known]
    if unknown:
        raise ValueError(f"{where} cannot state {', '.join(unknown)}; it may state {', '.join(known)}")


def resampler_configs(config: TrainingFile) -> list[ResamplerConfig]:
    """Every latent resampler of the family."""
    section = config.section("upsampler")
    tokens = config.section("tokenizer")["model"]
    sizes = {"code_dim": tokens["code_dim"], "vocab_size": tokens["codebook_size"]}
    if "temperature" in section:
        sizes["temperature"] = section["temperature"]
    return [ResamplerConfig(a, b, **sizes, **section["model"]) for a, b in section["pairs"]]


def trained_resamplers(config: TrainingFile, run: Path, variant: str | None = None) -> Resamplers:
    """Latent resamplers of a run by (source, target) grid, those of a variant if one is named."""
    sizes = resampler_configs(config if variant is None else varied(config, variant))
    resamplers = {(p.source, p.target): LatentResampler(p) for p in sizes}
    load_averaged(nn.ModuleDict({m.config.name: m for m in resamplers.values()}), run, checkpoint_name(variant))
    return resamplers


def trained_variants(
    config: TrainingFile, run: Path, names: Sequence[str] = ()
) -> tuple[dict[str, tuple[Resamplers, dict[str, Any]]], list[str]]:
    """Variants that a run has trained.

    Args:
        config: the training file.
        run: folder of checkpoints.
        names: those that are wanted; empty takes every one that is there.

    Returns:
        By name, the resamplers and how they were trained: the options of the task, `pairs`, and the `steps` so far. And
        notes on variants of the file that the run lacks.

    Raises:
        ValueError: a variant that is asked for is unknown or not trained.
    """
    known = variant_names(config)
    there = [name for name in known if (run / f"{checkpoint_name(name)}.pt").exists()]
    found = {}
    for name in names or there:
        resamplers = trained_resamplers(config, run, name)
        section = varied(config, name).section("upsampler")
        stated = {key: value for key, value in section.items() if key in ("pairs", *OPTIONS)}
        found[name] = (resamplers, {**stated, "steps": checkpoint(run, checkpoint_name(name))["step"]})
    missing = [] if names else [name for name in known if name not in there]
    return found, [f"variant {name} is left out: it is not trained" for name in missing]
