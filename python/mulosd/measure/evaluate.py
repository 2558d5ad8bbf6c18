"""The evaluation of decoders on one set of images: distances to real ones, accuracy, likelihood, diversity, seams."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..engine.atomic import atomic, write_json
from ..engine.decoding.spec import parse, spell
from ..engine.paths import expanded
from .journal import open_folder
from .judge import Judge
from .machine import now
from .measures import known, seconds
from .metrics.diversity import overall_diversity
from .metrics.kid import MIN_SET
from .references import Reference, folder_reference
from .rows import Row, rows_of
from .run import Job, Progress, Sample, describe, difference, draw, origin
from .statistics import bootstrap_ratio
from .table import Column, figure, named, table, total

if TYPE_CHECKING:
    from rich.table import Table

    from ..engine.engine import Engine
    from ..engine.family import Family
    from ..engine.sampling import SamplingParams


def samples_of(family: Family, texts: Sequence[str]) -> list[Sample]:
    """A sample for each decoder, as `decoding.parse` reads it; what a text leaves open comes from the family.

    Raises:
        ValueError: none, an unknown one, two that are the same, or a setting that the family lacks.
    """
    if not texts:
        raise ValueError("there is no decoder to evaluate; name one or more, such as serial and mulo")
    found: list[Sample] = []
    for text in texts:
        decoder = parse(text).resolve(family)
        same = next((one.label for one in found if one.decoder == decoder), None)
        if same is not None:
            raise ValueError(f"the decoders {same!r} and {text!r} are the same one; leave one of them out")
        name = re.sub(r"[^\w.=+-]+", "_", text.strip())
        taken = {one.folder for one in found}
        folder = name if name not in taken else f"{name}-{len(found)}"
        found.append(Sample(decoder, label=text.strip(), folder=folder))
    return found


@dataclass(frozen=True)
class Evaluation:
    """A report of plain values with the images that it is about."""

    report: dict[str, Any]
    samples: list[Sample]
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
    """Draw the same prompts with the same seeds by each decoder, and measure the images.

    Images are kept in `folder` as they are made; the same call takes up from it what an interrupted one left.

    Args:
        engine: a loaded engine.
        prompts: image k of prompt i has seed `seed` + i * `num_images` + k in every decoder.
        decoders: as `decoding.parse` reads them; differences are to the first.
        folder: gets `report.json`, `images/DECODER/NUMBER-seedN.png` and what resuming needs; made if missing.
        reference: a folder of real images; None takes held-out ones of what the family was trained on.
        real: real images to compare with.
        num_images: images of each prompt.
        sampling: None takes the family's defaults.
        seed: of the first image, and of the choice of real ones.
        batch_size: images drawn together; seconds are then of an image's share of the batch.
        overwrite: drop what an earlier evaluation left in `folder`.
        command: how it was called, for the report.
        progress: called with (what, done, total).

    Raises:
        ValueError: no prompts or an empty one, impossible settings, too few real images, or `folder` holds something
            else.
    """
    if not prompts:
        raise ValueError("the evaluation needs at least one prompt")
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if real < MIN_SET:
        raise ValueError(f"at least {MIN_SET} real images are needed to compare with, {real} were asked for")
    samples = samples_of(engine.family, decoders)
    warnings = engine.check_prompts(prompts)
    found = None if reference is None else folder_reference(reference, real, engine.family.image_sizes[-1], seed)
    params = engine.family.sampling if sampling is None else sampling
    about = {
        **origin(engine, params, seed),
        "prompts": list(prompts),
        "decoders": [spell(one.decoder) for one in samples],
        "num_images": num_images,
        "batch": batch_size,
        "dtype": str(engine.dtype).removeprefix("torch."),
    }
    folder = expanded(folder)
    asked = [prompt for prompt in prompts for _ in range(num_images)]
    starts = range(0, len(asked), batch_size)
    jobs = [Job(list(range(start, min(start + batch_size, len(asked)))), timed=True) for start in starts]
    with open_folder(folder, about, overwrite) as journal:
        for drawn in draw(engine, asked, jobs, samples, params, seed, journal, progress):
            samples[drawn.turn].add(jobs[drawn.number], drawn)
        for one in samples:
            save_images(folder / "images" / one.folder, one.images, seed)

    judge = Judge(engine, real_scenes=real, seed=seed, reference=found)
    # A half of the prompts must hold two images.
    group = num_images if len(prompts) > 1 else 1
    rows = []
    for n, one in enumerate(samples, start=1):
        rows.append(describe(engine, asked, one, judge, group, sets=True))
        if progress is not None:
            progress("quality", n, len(samples))
    compare(rows, samples, group)
    notes = warnings + judge.notes
    if judge.reference is not None and len(asked) < MIN_SET:
        notes.append(f"kid, frechet and diversity are null: they need at least {MIN_SET} images, got {len(asked)}")
    report = {
        **about,
        "command": command,
        "date": now(),
        "threads": torch.get_num_threads(),
        "images": len(asked),
        "counted": None if judge.grader is None else judge.grader.what,
        "reference": describe_reference(judge, len(asked)),
        "notes": notes + remarks(rows, samples, batch_size),
        "rows": [{**row.to_dict(), "images": f"images/{one.folder}"} for row, one in zip(rows, samples, strict=True)],
    }
    write_json(folder / "report.json", report)
    return Evaluation(report, samples, judge.reference)


def save_images(folder: Path, images: Sequence[NDArray[np.uint8]], seed: int) -> None:
    """Write images that are not there yet as NUMBER-seedN.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        path = folder / f"{number:05d}-seed{seed + number}.png"
        if not path.exists():
            with atomic(path) as file:
                Image.fromarray(image).save(file, format="PNG")


def compare(rows: Sequence[Row], samples: Sequence[Sample], group: int) -> None:
    """Add to each row its speed-up over the first decoder and the differences to it, on the same prompts and seeds."""
    base = samples[0]
    for row, one in zip(rows, samples, strict=True):
        own, first = np.asarray(one.seconds), np.asarray(base.seconds)
        row.values["speedup"] = {"value": float(first.sum() / own.sum()), "ci95": list(bootstrap_ratio(first, own))}
        row.values["difference"] = None if one is base else difference(one, base, group)


def remarks(rows: Sequence[Row], samples: Sequence[Sample], batch: int) -> list[str]:
    """What a reader of the figures should know."""
    notes = []
    poor = next((found for row in rows if (found := row.values["frechet"]) is not None), None)
    if poor is not None and not poor["full_rank"]:
        notes.append(
            f"frechet is biased upwards: {poor['real']} real and {poor['made']} drawn images do not fill the "
            f"{poor['width']} dimensions of the features; compare rows of this report alone"
        )
    for row, one in zip(rows, samples, strict=True):
        if one.resampled and row.values["seam"] is None:
            notes.append(f"the seam energy of {one.label} is null: nothing was resampled, or everything")
    if batch > 1:
        notes.append(f"seconds are those of batches of {batch}, divided by their images")
    return notes


def describe_reference(judge: Judge, made: int) -> dict[str, Any] | None:
    """The measures of images that no decoder made: real ones, and real ones that went through the tokenizer.

    As many images are taken as were drawn, because the Frechet distance depends on their number.
    """
    reference = judge.reference
    if reference is None:
        return None
    features = reference.real.features
    found = {
        "name": reference.name,
        "real": len(reference.real),
        "diversity": None if features is None else overall_diversity(features).plain(),
        "perfect": None,
        "reconstruction": None,
    }
    for name, images in judge.known(made).items():
        accuracy = judge.known_accuracy(images)
        found[name] = {
            "images": len(images),
            "accuracy": accuracy,
            "scenes": accuracy["scene"] if accuracy is not None and judge.scenes else None,
            **judge.stated(judge.distances(images), images),
        }
    return found


def evaluation_table(report: dict[str, Any]) -> Table:
    """The rows of an evaluation as a table."""
    rows = rows_of(report)
    shown = [measure for measure in known(rows) if measure.key != "relative_seam"]
    return table(
        rows,
        [
            named([row.what["label"] for row in rows], rows),
            Column("s/image", lambda row: f"{seconds(row).value:.3g}"),
            figure("×", "speedup", "{value:.2f}"),
            total("fwd", "forwards"),
            figure("res", "coverage", "{value:.1f}", 100),
            *(figure(m.short, m.path, f"{{value:.{m.digits}f}}", m.factor) for m in shown),
        ],
        f"{report['family']}: {len(report['prompts'])} prompts x {report['num_images']}",
        f"{report['device']}. ×: speed-up; fwd: forwards; res: resampled, %; intervals are in the report",
    )
