"""The evaluation of decoders on one set of pictures: distances to real ones, accuracy, likelihood, diversity, seams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..atomic import atomic, write_json
from ..engine.decoding.base import Decoder
from ..engine.decoding.spec import parse, spell
from .accuracy import summarise
from .diversity import mean_over_prompts, overall_diversity, prompt_diversities
from .folder import open_folder
from .frechet import report as frechet_report
from .judge import Judge
from .kid import MIN_SET
from .pictures import PictureSet
from .references import Reference, folder_reference
from .samples import (
    Job,
    Progress,
    Sample,
    by_prompt,
    difference,
    likelihoods,
    mean_by_key,
    mean_or_none,
    origin,
    run_jobs,
)
from .seams import seam_energy
from ..measure.statistics import Estimate, bootstrap_ratio, spread

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.family import Family
    from ..engine.sampling import SamplingParams


@dataclass(frozen=True)
class Column:
    """A decoder of an evaluation: as it was asked for, resolved, and the name of its folder."""

    label: str
    decoder: Decoder
    folder: str


def columns(family: Family, texts: Sequence[str]) -> list[Column]:
    """Decoders as `decoding.parse` reads them; what a text leaves open comes from the family.

    Raises:
        ValueError: none, an unknown one, two that are the same, or a setting that the family lacks.
    """
    if not texts:
        raise ValueError("there is no decoder to evaluate; name one or more, such as serial and mulo")
    found: list[Column] = []
    for text in texts:
        decoder = parse(text).resolve(family)
        same = next((column.label for column in found if column.decoder == decoder), None)
        if same is not None:
            raise ValueError(f"the decoders {same!r} and {text!r} are the same one; leave one of them out")
        name = re.sub(r"[^\w.=+-]+", "_", text.strip())
        taken = {column.folder for column in found}
        found.append(Column(text.strip(), decoder, name if name not in taken else f"{name}-{len(found)}"))
    return found


@dataclass
class Measured:
    """A decoder's pictures, the estimates behind its figures, and the row of the report that states them."""

    column: Column
    sample: Sample
    row: dict[str, Any]
    estimates: dict[str, Estimate]
    within: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Evaluation:
    """A report of plain values with the pictures that it is about."""

    report: dict[str, Any]
    measured: list[Measured]
    reference: Reference | None


def evaluate(
    engine: Engine,
    prompts: Sequence[str],
    decoders: Sequence[str],
    folder: Path,
    *,
    reference: Path | None = None,
    real: int = 256,
    num_images: int = 1,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    batch_size: int = 1,
    overwrite: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Draw the same prompts with the same seeds by each decoder, and measure the pictures.

    Pictures are kept in `folder` as they are made; the same call takes up from it what an interrupted one left.

    Args:
        engine: a loaded engine.
        prompts: picture k of prompt i has seed `seed` + i * `num_images` + k in every decoder.
        decoders: as `decoding.parse` reads them; differences are to the first.
        folder: gets `report.json`, `images/DECODER/NUMBER-seedN.png` and what resuming needs; made if missing.
        reference: a folder of real pictures; None takes held-out ones of what the family was trained on.
        real: real pictures to compare with.
        num_images: pictures of each prompt.
        sampling: None takes the family's defaults.
        seed: of the first picture, and of the choice of real ones.
        batch_size: pictures drawn together; seconds are then of a picture's share of the batch.
        overwrite: drop what an earlier evaluation left in `folder`.
        command: how it was called, for the report.
        progress: called with (what, done, total).

    Raises:
        ValueError: no prompts or an empty one, impossible settings, too few real pictures, or `folder` holds something
            else.
    """
    if not prompts:
        raise ValueError("the evaluation needs at least one prompt")
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if real < MIN_SET:
        raise ValueError(f"at least {MIN_SET} real pictures are needed to compare with, {real} were asked for")
    chosen = columns(engine.family, decoders)
    warnings = engine.check_prompts(prompts)
    size = engine.family.image_sizes[-1]
    found = None if reference is None else folder_reference(reference, real, size, seed)
    params = engine.family.sampling if sampling is None else sampling
    about = origin(engine, params, seed)
    plan = {
        "prompts": list(prompts),
        "decoders": [spell(column.decoder) for column in chosen],
        "num_images": num_images,
        "batch": batch_size,
        "dtype": str(engine.dtype).removeprefix("torch."),
    }
    journal = open_folder(folder, {**about, **plan}, overwrite)

    asked = [prompt for prompt in prompts for _ in range(num_images)]
    samples = [Sample(column.decoder) for column in chosen]
    starts = range(0, len(asked), batch_size)
    jobs = [Job(list(range(start, min(start + batch_size, len(asked)))), timed=True) for start in starts]
    run_jobs(engine, asked, jobs, samples, params, seed, journal, progress)
    measured = [Measured(column, sample, {}, {}) for column, sample in zip(chosen, samples, strict=True)]
    for one in measured:
        save_images(folder / "images" / one.column.folder, one.sample.images, seed)

    judge = Judge(engine, real_scenes=real, seed=seed, reference=found)
    # A half of the prompts must hold two pictures.
    group = num_images if len(prompts) > 1 else 1
    for n, one in enumerate(measured, start=1):
        describe(engine, asked, one, judge, [len(job.prompts) for job in jobs], group)
        if progress is not None:
            progress("quality", n, len(measured))
    compare(measured, group)
    notes = warnings + judge.notes
    if judge.reference is not None and len(asked) < MIN_SET:
        notes.append(f"kid, frechet and diversity are null: they need at least {MIN_SET} pictures, got {len(asked)}")
    notes += remarks(measured, batch_size)
    report = {
        **about,
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **plan,
        "images": len(asked),
        "counted": None if judge.grader is None else judge.grader.what,
        "reference": describe_reference(judge, len(asked)),
        "notes": notes,
        "rows": [one.row for one in measured],
    }
    write_json(folder / "report.json", report)
    return Evaluation(report, measured, judge.reference)


def save_images(folder: Path, images: Sequence[NDArray[np.uint8]], seed: int) -> None:
    """Write pictures that are not there yet as NUMBER-seedN.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        path = folder / f"{number:05d}-seed{seed + number}.png"
        if not path.exists():
            with atomic(path) as file:
                Image.fromarray(image).save(file, format="PNG")


def describe(
    engine: Engine, prompts: Sequence[str], one: Measured, judge: Judge, sizes: Sequence[int], group: int
) -> None:
    """Fill the row of a decoder; `sizes` are the pictures of each timed call."""
    sample = one.sample
    pictures = judge.see(np.stack(sample.images))
    sample.nll = likelihoods(engine, prompts, torch.cat(sample.tokens))
    sample.scores = judge.scores(prompts, pictures)
    resampled = torch.cat(sample.resampled).numpy() if sample.resampled else None
    total = [float(sum(stats.forwards.values())) for stats in sample.stats]
    each = np.asarray(sample.seconds) / sizes
    one.row.update(
        label=one.column.label,
        decoder=sample.decoder.name,
        spec=spell(sample.decoder),
        settings=sample.decoder.settings(),
        images=f"images/{one.column.folder}",
        seconds_per_image={
            **spread(each),
            "mean": sum(sample.seconds) / sum(sizes),
            "ci95": list(bootstrap_ratio(sample.seconds, sizes)),
            "runs": len(sizes),
        },
        forwards=mean_by_key([stats.forwards for stats in sample.stats]),
        forwards_ci95=list(bootstrap_ratio(by_prompt(total, group), by_prompt(np.ones(len(total)), group))),
        rejection=mean_or_none([stats.rejection for stats in sample.stats]),
        coverage=mean_or_none([stats.coverage for stats in sample.stats]),
        accepted=mean_or_none([stats.accepted for stats in sample.stats]),
        nll=float(sample.nll.mean()),
        nll_ci95=list(bootstrap_ratio(by_prompt(sample.nll, group), by_prompt(np.ones(len(sample.nll)), group))),
        accuracy=None if sample.scores is None else summarise(sample.scores, group),
        diversity=None,
        seam=None if resampled is None else seam_energy(sample.images, resampled, group),
    )
    one.estimates = judge.distances(pictures, group)
    one.row.update(stated(one.estimates, judge, pictures))
    features = pictures.features
    if features is None or len(features) < MIN_SET:
        return
    one.estimates["overall"] = overall_diversity(features, group=group)
    one.within = prompt_diversities(features, group) if group > 1 else None
    one.row["diversity"] = {
        "overall": plain(one.estimates["overall"]),
        "within": None if one.within is None else mean_over_prompts(one.within),
    }


def stated(distances: dict[str, Estimate], judge: Judge, pictures: PictureSet) -> dict[str, Any]:
    """The distances of pictures as a row states them; None where there are none."""
    sides = judge.compared(pictures)
    if sides is None:
        return {"kid": None, "frechet": None}
    (real, width), made = sides[0].shape, len(pictures)
    return {"kid": plain(distances["kid"]), "frechet": frechet_report(distances["frechet"], real, made, width)}


def plain(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "std": estimate.std, "ci95": estimate.ci95}


def compare(measured: Sequence[Measured], group: int) -> None:
    """Add to each row its speed-up over the first decoder and the differences to it, on the same prompts and seeds."""
    base = measured[0]
    for one in measured:
        own, first = np.asarray(one.sample.seconds), np.asarray(base.sample.seconds)
        one.row["speedup"] = {"value": float(first.sum() / own.sum()), "ci95": list(bootstrap_ratio(first, own))}
        one.row["difference"] = None
        if one is base:
            continue
        differences = difference(one.sample, base.sample, group)
        for key, estimate in one.estimates.items():
            differences[key] = plain(estimate - base.estimates[key])
        if one.within is not None and base.within is not None:
            differences["within"] = mean_over_prompts(one.within - base.within)
        one.row["difference"] = differences


def remarks(measured: Sequence[Measured], batch: int) -> list[str]:
    """What a reader of the figures should know."""
    notes = []
    poor = next((one.row["frechet"] for one in measured if one.row["frechet"] is not None), None)
    if poor is not None and not poor["full_rank"]:
        notes.append(
            f"frechet is biased upwards: {poor['real']} real and {poor['made']} drawn pictures do not fill the "
            f"{poor['width']} dimensions of the features; compare rows of this report alone"
        )
    for one in measured:
        if one.sample.resampled and one.row["seam"] is None:
            notes.append(f"the seam energy of {one.column.label} is null: nothing was resampled, or everything")
    if batch > 1:
        notes.append(f"seconds are those of batches of {batch}, divided by their pictures")
    return notes


def describe_reference(judge: Judge, made: int) -> dict[str, Any] | None:
    """The measures of pictures that no decoder made: real ones, and real ones that went through the tokenizer.

    As many pictures are taken as were drawn, because the Frechet distance depends on their number.
    """
    reference = judge.reference
    if reference is None:
        return None
    features = reference.real.features
    found = {
        "name": reference.name,
        "real": len(reference.real),
        "diversity": None if features is None else plain(overall_diversity(features)),
        "perfect": None,
        "reconstruction": None,
    }
    for name, pictures in judge.known(made).items():
        found[name] = {
            "images": len(pictures),
            "accuracy": judge.known_accuracy(pictures),
            **stated(judge.distances(pictures), judge, pictures),
        }
    return found
