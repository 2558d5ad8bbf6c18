"""Export of a run: its stages, assembled into a family folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.family import PhotoSplit
from ..engine.conditioning import PhraseConditioner
from ..engine.family import Family
from ..engine.family_config import FamilyConfig
from ..engine.models.upsampler import LatentResampler
from ..engine.paths import expanded
from ..engine.weights import new_folder
from ..measure.readers.classes import FILE as CLASSIFIER
from ..measure.readers.objects import FILE as READER
from .ar import trained_ar
from .captions import check_order
from .config import TrainingFile
from .eagle import trained_drafter
from .reader import trained_reader
from .reference import add_features
from .srgan import trained_srgan
from .tokenizer import trained_tokenizer
from .upsampler import trained_resamplers


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
    config, run, output = TrainingFile.load(config_path), expanded(run), expanded(output)
    conditioner, transformer = trained_ar(config, run)
    if isinstance(conditioner, PhraseConditioner) and "captions" in config.values:
        check_order(conditioner, config.scenes())
    start = config.initial_family()
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
        facts["scenes"] = {k: v for k, v in d.__dict__.items() if k != "relations"} | {"mix": list(d.mix)}
    if photos:
        size = tokenizer.config.patch * max(transformer.config.grids)
        facts["photos"] = PhotoSplit.of(config.photos(), config.held_out_share, size).to_dict()
    family = Family(
        FamilyConfig(config.name, config.sampling, facts=facts),
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
                trained_reader(config, run).save(folder / READER)
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
