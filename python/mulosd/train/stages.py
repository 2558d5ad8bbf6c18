"""The stages of training a family: which task, which checkpoint, and the export to a family folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.family import PhotoSplit
from ..engine.conditioning import ClassConditioner, Conditioner, PhraseConditioner
from ..engine.family import Family, add_eagle
from ..engine.family_config import FamilyConfig
from ..engine.models.eagle import EagleConfig, EagleDrafter
from ..engine.models.srgan import SuperResolver, SuperResolverConfig
from ..engine.models.tokenizer import Tokenizer, TokenizerConfig
from ..engine.models.transformer import Transformer, TransformerConfig
from ..engine.models.upsampler import LatentResampler
from ..engine.sampling import SamplingParams
from ..engine.weights import new_folder
from ..measure.readers.classes import FILE as CLASSIFIER
from ..measure.readers.objects import FILE as READER
from .ar import ARTask, Phase
from .captions import CaptionsTask, check_order
from .checkpoint import averaged, load_averaged
from .classifier import train_classifier
from .config import TrainingFile
from .eagle import EagleTask
from .loop import Task, train
from .reference import add_features
from .sources import ImageSource
from .srgan import SuperResolverTask
from .tokenizer import TokenizerTask
from .upsampler import ResamplerTask
from .variants import checkpoint_name, resampler_configs, trained_resamplers, varied

STAGES = ("tokenizer", "captions", "ar", "text", "upsampler", "srgan", "reader", "classifier", "eagle")


def trained_tokenizer(config: TrainingFile, run: Path) -> Tokenizer:
    """The tokenizer of a run, with its averaged weights, or that of the family to start from when the run has none."""
    start = initial_family(config)
    if start is not None and not (run / "tokenizer.pt").exists():
        return trained_here(start)[1]
    tokenizer = Tokenizer(TokenizerConfig.from_dict(config.section("tokenizer")["model"]))
    tokenizer.load_state_dict(averaged(run, "tokenizer"))
    return tokenizer.eval()


def initial_family(config: TrainingFile) -> Family | None:
    """The family named by `init`, whose models training starts from."""
    return Family.load(config.resolve(config.values["init"])) if "init" in config.values else None


def ar_config(config: TrainingFile, conditioner: ClassConditioner | PhraseConditioner) -> TransformerConfig:
    """Sizes of the AR model, with what follows from the other sections filled in."""
    section = config.section("ar")
    if isinstance(conditioner, ClassConditioner):
        dim = (section["classes"] or {}).get("dim", section["model"]["dim"])
        condition = {"cond_len": 1, "cond_dim": dim, "n_classes": conditioner.n_classes}
    else:
        sizes = conditioner.text.config
        condition = {"cond_len": sizes.length, "cond_dim": sizes.dim}
    return TransformerConfig.from_dict(
        {
            **section["model"],
            "vocab_size": config.section("tokenizer")["model"]["codebook_size"],
            "grids": section["grids"],
            **condition,
        }
    )


def trained_ar(config: TrainingFile, run: Path) -> tuple[Conditioner, Transformer]:
    """The conditioner and the AR model of a run, with their averaged weights."""
    conditioner = config.conditioner()
    transformer = Transformer(ar_config(config, conditioner))
    for stage in ("ar", "text"):
        if stage == "ar" or (run / f"{stage}.pt").exists():
            load_averaged(nn.ModuleDict({**conditioner.weights, "ar": transformer}), run, stage)
    return conditioner, transformer


def srgan_config(config: TrainingFile) -> SuperResolverConfig:
    """Sizes of the super-resolution network."""
    return SuperResolverConfig(**config.section("srgan").get("model", {}))


def trained_srgan(config: TrainingFile, run: Path) -> SuperResolver:
    """The super-resolution network of a run, with its averaged weights."""
    network = SuperResolver(srgan_config(config))
    load_averaged(network, run, "srgan")
    return network


def drafter_of(config: TrainingFile, target: Transformer) -> EagleDrafter:
    """The feature drafter that the section `eagle` describes, untrained."""
    section = config.section("eagle")
    return EagleDrafter(EagleConfig(tuple(section["batch"]), target.config.head_dim, **section["model"]), target)


def trained_here(family: Family) -> tuple[Transformer, Tokenizer]:
    """The AR model and the tokenizer of a family that `mulosd train` made; ValueError for one that was converted."""
    if not isinstance(family.ar, Transformer) or not isinstance(family.tokenizer, Tokenizer):
        raise ValueError(f"family {family.name!r} was not trained by mulosd: its models cannot be trained further here")
    return family.ar, family.tokenizer


def same_conditions(a: Conditioner, b: Conditioner) -> bool:
    """Whether two conditioners know the same words, or the same classes."""
    if isinstance(a, PhraseConditioner) and isinstance(b, PhraseConditioner):
        return a.vocabulary.to_dict() == b.vocabulary.to_dict()
    return a.kind == b.kind and a.to_dict() == b.to_dict()


def eagle_task(config: TrainingFile, run: Path) -> EagleTask:
    """The task of the feature drafter: its target is the run's AR model, or else that of the family in `eagle.family`.

    Raises:
        ValueError: neither is there, or the family has other words or classes than the training file.
    """
    section = config.section("eagle")
    options = {k: v for k, v in section.items() if k not in ("loop", "model", "family")}
    if (run / "ar.pt").exists() or "family" not in section:
        conditioner, target = trained_ar(config, run)
        tokenizer = trained_tokenizer(config, run)
    else:
        family = Family.load(config.resolve(section["family"]))
        if not same_conditions(family.conditioner, config.conditioner()):
            raise ValueError(f"eagle.family: {family.name!r} has other words or classes than this training file")
        target, tokenizer = trained_here(family)
        conditioner = family.conditioner
    return EagleTask(drafter_of(config, target), conditioner, tokenizer, config.source(), **options)


def held_out_source(config: TrainingFile, stage: str) -> ImageSource | None:
    """The held-out pictures of a stage whose loop validates."""
    return config.source(held_out=True) if config.loop(stage).validate_every else None


def build_task(stage: str, config: TrainingFile, run: Path) -> Task:
    """The task of a stage, its inputs taken from the run."""
    if stage == "text":
        config.phrases(stage)
    section: dict[str, Any] = {k: v for k, v in config.section(stage).items() if k not in ("loop", "model")}
    if stage == "tokenizer":
        model = TokenizerConfig.from_dict(config.section(stage)["model"])
        return TokenizerTask(model, config.source(), held_out=held_out_source(config, stage), **section)
    if stage == "reader":
        from .reader import ReaderTask

        return ReaderTask.from_config(config)
    if stage == "captions":
        phrases = config.phrases(stage)
        width = config.section("ar")["model"].get("position_cond", 0)
        return CaptionsTask(phrases.text.config, phrases.vocabulary, config.scenes(), position_cond=width, **section)
    if stage == "eagle":
        return eagle_task(config, run)
    tokenizer = trained_tokenizer(config, run)
    if stage == "upsampler":
        options = {k: v for k, v in section.items() if k not in ("pairs", "variants")}
        return ResamplerTask(resampler_configs(config), tokenizer, config.source(), **options)
    if stage == "srgan":
        return SuperResolverTask(srgan_config(config), tokenizer, config.source(), **section)
    conditioner = config.conditioner()
    options = config.section("ar")
    task = ARTask(
        ar_config(config, conditioner),
        conditioner,
        tokenizer,
        config.source(),
        [Phase.from_dict(p) for p in options["phases"]],
        cond_dropout=options.get("cond_dropout", 0.1),
        token_noise=options.get("token_noise", 0.0),
        entropy_weight=options.get("entropy_weight", 0.0),
        cond_only=stage == "text",
        freeze_text=stage == "ar" and options.get("freeze_text", False),
        pool=options.get("pool", 0),
        held_out=held_out_source(config, stage),
        validation=options.get("validation", 64),
    )
    if stage == "text":
        task.module.load_state_dict(averaged(run, "ar"))
    else:
        start = initial_family(config)
        if start is not None:
            start_from(start, task, text=not (run / "captions.pt").exists())
        if (run / "captions.pt").exists():
            own = part(averaged(run, "captions"), "text.")
            conditioner.weights["text"].load_state_dict(own)
            if task.ar.position_cond is not None:
                task.ar.position_cond.load_state_dict(part(averaged(run, "captions"), "position."))
    return task


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one part of a module, by their names in it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def start_from(family: Family, task: ARTask, *, text: bool = True) -> None:
    """Start the AR model, and with `text` the text encoder, from those of a family of the same sizes and words.

    A family of classes must have the same ones.

    The family may lack grids of the training file: their positions start from those of its largest grid.

    Raises:
        ValueError: the family's sizes, words or classes differ from the training file's.
    """
    given = task.conditioner
    if not same_conditions(family.conditioner, given):
        raise ValueError(f"init: family {family.name!r} has other words or classes than this training file")
    ar, _ = trained_here(family)
    old, new = ar.config, task.ar.config
    missing = set(old.grids) - set(new.grids)
    # What positions are told of the condition may be new: a family without it is a start as well.
    told = old.position_cond or new.position_cond
    sizes = replace(old, grids=new.grids, position_cond=told)
    if sizes != new or missing or (text and family.conditioner.to_dict() != given.to_dict()):
        raise ValueError(f"init: family {family.name!r} has other sizes than this training file: {old}")
    state = with_grids(ar.state_dict(), old.grids, new.grids)
    task.ar.load_state_dict({**part(task.ar.state_dict(), ""), **state})
    if text:
        for name, module in given.weights.items():
            module.load_state_dict(family.conditioner.weights[name].state_dict())


def with_grids(state: dict[str, Tensor], old: tuple[int, ...], new: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights of a transformer on the grids `old` as weights on the grids `new`, a superset.

    The embeddings of a grid that is new are those of the largest old one, its rows and columns stretched linearly.
    """
    largest = old.index(max(old))
    grown = {k: v for k, v in state.items() if not k.startswith(("grid_embedding.", "row_embed", "col_embed"))}
    source = [old.index(g) if g in old else largest for g in new]
    grown["grid_embedding.weight"] = state["grid_embedding.weight"][source]
    for i, (grid, j) in enumerate(zip(new, source, strict=True)):
        for axis in ("row", "col"):
            weight = state[f"{axis}_embeddings.{j}.weight"]
            stretched = F.interpolate(weight.T[None], size=grid, mode="linear", align_corners=False)[0].T
            grown[f"{axis}_embeddings.{i}.weight"] = weight if grid == old[j] else stretched.contiguous()
    return grown


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
        ValueError: unknown stage, section or variant, or an earlier stage is missing.
    """
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; choose one of {', '.join(STAGES)}")
    if variant is not None and stage != "upsampler":
        raise ValueError(f"the stage {stage} has no variants, only upsampler has; got {variant!r}")
    config = TrainingFile.load(config_path)
    if variant is not None:
        config = varied(config, variant)
    if stage == "classifier":
        reader = train_classifier(config, run, device=device)
        return {"weight": reader.weight, "bias": reader.bias}
    loop = config.loop(stage, steps)
    torch.manual_seed(config.seed)
    task = build_task(stage, config, run)
    if variant is not None:
        start = averaged(run, stage)
        task.module.load_state_dict({k: start[k] for k in task.module.state_dict()})
    name = stage if variant is None else checkpoint_name(variant)
    return train(task, loop, run, seed=config.seed, name=name, device=device)


def export(
    config_path: Path, run: Path, output: Path, variants: Sequence[str] = (), *, half_encoder: bool = False
) -> Path:
    """Assemble the trained stages of a run into a family folder, which appears whole or not at all.

    A run that trained neither tokenizer nor up-samplers takes those of the family it started from.

    A family of scenes also gets its sprite sheet and its reader, that of the family it started from if the run trained
    none; one of photos, once its reader of classes is trained, that reader and the features of held-out photos that
    evaluations compare with; any family its feature drafter and its super-resolution network, once trained. The family
    still needs `mulosd calibrate`.

    Args:
        config_path: the family's YAML file.
        run: folder of checkpoints.
        output: the new folder.
        variants: of the latent resamplers, the later before the earlier; those between grids that they leave out are
            the run's own.
        half_encoder: round the tokenizer's encoder to float16 too.

    Raises:
        ValueError: a stage or a variant is missing from the run, the text encoder has lost the order of objects that
            the stage captions taught it, or `output` exists already.
    """
    config = TrainingFile.load(config_path)
    conditioner, transformer = trained_ar(config, run)
    if isinstance(conditioner, PhraseConditioner) and "captions" in config.values:
        check_order(conditioner, config.scenes())
    start = initial_family(config)
    if start is None or any((run / f"{stage}.pt").exists() for stage in ("tokenizer", "upsampler")):
        resamplers = trained_resamplers(config, run)
    else:
        resamplers = taken_resamplers(config, start)
    for variant in variants:
        resamplers |= trained_resamplers(config, run, variant)
    facts: dict[str, Any] = {}
    tokenizer = trained_tokenizer(config, run)
    scenes, photos = (config.data["kind"] == kind for kind in ("scenes", "photos"))
    if scenes:
        d = config.scenes()
        facts["scenes"] = {**d.__dict__, "mix": list(d.mix)}
    if photos:
        size = tokenizer.config.patch * max(transformer.config.grids)
        facts["photos"] = PhotoSplit.of(config.photos(), config.held_out_share, size).to_dict()
    family = Family(
        FamilyConfig(config.name, SamplingParams(**config.values.get("sampling", {})), facts=facts),
        tokenizer,
        conditioner,
        [transformer],
        resamplers,
        eagle=trained_drafter(config, run, transformer) if (run / "eagle.pt").exists() else None,
        srgan=trained_srgan(config, run) if (run / "srgan.pt").exists() else None,
    )
    with new_folder(output) as folder:
        family.write(folder, half_encoder=half_encoder)
        if (run / CLASSIFIER).exists():
            shutil.copyfile(run / CLASSIFIER, folder / CLASSIFIER)
            if photos:
                add_features(config.photos(), folder)
        if scenes:
            shutil.copyfile(config.resolve(config.data["sprites"]), folder / "sprites.png")
            known = None if start is None or start.path is None else start.path / READER
            if (run / "reader.pt").exists():
                export_reader(config, run, folder / READER)
            elif known is not None and known.is_file():
                shutil.copyfile(known, folder / READER)
    return output


def taken_resamplers(config: TrainingFile, start: Family) -> dict[tuple[int, int], LatentResampler]:
    """Resamplers of the family that a run started from, which know nothing but codes and grids.

    Those of `upsampler.pairs`, or all in a file without that section; ValueError when the family lacks one.
    """
    if "upsampler" not in config.values:
        return dict(start.resamplers)
    pairs = [(int(a), int(b)) for a, b in config.section("upsampler")["pairs"]]
    if missing := [pair for pair in pairs if pair not in start.resamplers]:
        raise ValueError(
            f"init: family {start.name!r} has no resampler {missing[0][0]} -> {missing[0][1]}, it has "
            f"{sorted(start.resamplers)}; run `mulosd train upsampler`, or leave it out of upsampler.pairs"
        )
    return {pair: start.resamplers[pair] for pair in pairs}


def trained_drafter(config: TrainingFile, run: Path, target: Transformer) -> EagleDrafter:
    """The feature drafter of a run, with its averaged weights."""
    drafter = drafter_of(config, target)
    load_averaged(drafter, run, "eagle")
    return drafter


def attach(config_path: Path, run: Path, folder: Path) -> Path:
    """Give an existing family folder the feature drafter of a run; returns the file written.

    Raises:
        ValueError: the folder is no family, the run has no drafter, or its sizes do not fit the family.
    """
    config = TrainingFile.load(config_path)
    family = Family.load(folder)
    try:
        drafter = trained_drafter(config, run, trained_here(family)[0])
    except RuntimeError as error:
        raise ValueError(f"the drafter of {run} does not fit family {family.name!r}: {error}") from error
    return add_eagle(family.path or folder, drafter)


def export_reader(config: TrainingFile, run: Path, path: Path) -> None:
    """Write the trained reader of a run to a safetensors file."""
    from ..measure.readers.objects import Reader
    from .reader import ReaderTask

    net = ReaderTask.from_config(config).net
    load_averaged(net, run, "reader")
    Reader(net).save(path)
