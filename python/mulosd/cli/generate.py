"""`mulosd generate`: sentences to image files."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .console import Lines, Pipe, examples, stage_bar, stderr, warn
from .drawing import Record, alone, draw
from .files import Output, check_below, check_file
from .image_files import check_suffix
from .jobs import Job, job_of, missing, placed, remembered, settled
from .options import (
    DeviceOption,
    DevicesOption,
    DtypeOption,
    FamilyOption,
    OwnDecoderOption,
    Quantization,
    QuantizationOption,
    SamplingOption,
    SizeOption,
    dtype_name,
    read_decoder,
    read_devices,
    read_sampling,
    read_size,
    sized,
)
from .prompt_list import STDIN, Asked, read_prompt_list, seed_of
from .workers import draw_on

if TYPE_CHECKING:
    from ..engine.conditioning import Condition
    from ..engine.decoding import Decoder
    from ..engine.family import Family
    from ..engine.request import Update
    from ..engine.stats import Progress

    # Draws the jobs of a call and tells of its progress.
    Drawing = Callable[[Callable[[Progress], None]], Generator[tuple[Job, Update], None, None]]

EXAMPLES = examples(
    'mulosd generate "a cat left of a guitar on a yellow background" --output cat.png',
    'mulosd generate "two penguins on a pink background" --num-images 4 --seed 7 --output penguins/',
    "mulosd generate --prompts list.csv --decoder serial --output out/ --sheet sheet.png",
    "mulosd generate sunflower --family photo --decoder mulo:scale=4:radius=1 --sampling cfg_scale=3",
)


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="One sentence an image, each in quotes.", show_default=False),
    ] = None,
    prompt_list: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="More: a line each, CSV, JSONL, Parquet; - is stdin."),
    ] = None,
    family: FamilyOption = "emoji",
    decoder: OwnDecoderOption = None,
    sampling: SamplingOption = "",
    seed: Annotated[str, typer.Option(metavar="N|random", help="Same seed, same image, whatever the batch.")] = "0",
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Images of each prompt.")] = 1,
    size: SizeOption = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png, .jpg, .webp, folder, or - (stdout).")
    ] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Draw what is in the folder again.")] = False,
    stats: Annotated[Path | None, typer.Option(help="Also write settings, seconds and counts to this JSON.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write all images on one page.")] = None,
    features: Annotated[Path | None, typer.Option(help="Conditions (.npy) instead of the family's encoder.")] = None,
    collapse_prefix: Annotated[
        bool, typer.Option("--collapse-prefix", help="Keep the condition in one cache slot (LlamaGen).")
    ] = False,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    device: DeviceOption = "cpu",
    devices: DevicesOption = None,
) -> None:
    """Turn each PROMPT into images; a second call draws only what is missing in the folder.

    Files remember their settings. Words that the family does not know are ignored, with a warning.
    """
    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {num_images}")
    side = read_size(size)
    asked = [settled(one, num_images) for one in asked_for(prompts or [], prompt_list)]
    default = seed_of(seed, "--seed", lambda: secrets.randbelow(2**32))
    asked = [replace(one, seed=default if one.seed is None else one.seed) for one in asked]
    if any(first(one) + num_images > 2**63 for one in asked):
        raise ValueError(f"--num-images {num_images} leads to seeds of 2**63 and more; give a smaller --seed")
    where = Output.check(output, len(asked) * num_images)
    paths = paths_of(where, asked, num_images)
    check_paths(where, paths, stats, sheet)
    for one in asked:
        if (text := one.decoder or decoder) is not None:
            placed(one, text)

    from .. import Engine, SchedulerConfig
    from ..engine.decoding.default import default_decoder, remark
    from ..engine.devices import checked_device
    from ..engine.dtypes import DTYPES
    from ..engine.hub import load_family
    from ..engine.models.quantized import check_device
    from .features import read_features

    places = read_devices(device, devices)
    narrow = dtype_name(dtype, places[0])
    if any(dtype_name(dtype, place) != narrow for place in places):
        raise ValueError(f"--devices {devices}: these compute in different types; choose one for all with --dtype")
    load: dict[str, Any] = {
        "family": family,
        "dtype": narrow,
        "config": SchedulerConfig(collapse_prefix=collapse_prefix),
        "quantization": quantization.value,
    }
    engine = None
    if len(places) == 1:
        engine = Engine.from_pretrained(**load, device=places[0])
        loaded = engine.family
    else:
        for place in places:
            check_device(quantization.value, checked_device(place))
        loaded = load_family(family, dtype=DTYPES[narrow], weights=features is not None)
    given = None if features is None else read_features(features, loaded, len(asked))
    params = read_sampling(loaded, sampling)
    warnings = [] if given is not None else check_words(loaded, asked)
    own = decoder or default_decoder(loaded)
    if any(one.decoder is None for one in asked) and decoder is None and (said := remark(loaded)) is not None:
        warnings.append(said)
    texts = dict.fromkeys(one.decoder or own for one in asked)
    chosen = {text: sized(read_decoder(text), side, loaded).resolve(loaded) for text in texts}
    decoders = [chosen[one.decoder or own] for one in asked]
    common = remembered(loaded, params, narrow, quantization.value)
    jobs = jobs_of(asked, num_images, paths, decoders, common, given)
    todo = list(range(len(jobs))) if overwrite or not where.directory else missing(jobs)

    for warning in warnings:
        warn(warning)
    lines = Lines(stderr if where.stream else Pipe())
    if seed.strip().lower() == "random":
        lines.print(f"--seed {default}, drawn at random")
    record = Record(jobs, lines, stats, warnings)
    record.keep([job for i, job in enumerate(jobs) if i not in set(todo)])
    if record.entries:
        lines.print(f"{record.done} there already, in {escape(str(where.path))} (--overwrite draws them again)")
    left = [jobs[i] for i in todo]

    def draw_left(progress: Callable[[Progress], None]) -> Generator[tuple[Job, Update], None, None]:
        if engine is not None:
            return draw(engine, left, params, progress)
        return draw_on(places[: len(left)], load, left, params, progress)

    with alone(stats):
        run(draw_left, record, f" with --seed {default}" if seed == "random" else "")
    if sheet is not None:
        write_sheet(jobs, sheet)
        lines.print(f"[bold]{escape(str(sheet))}[/]")
    if lines.error is not None:
        raise ValueError(f"the lines about images could not be written ({lines.error}); {record.done} images are there")


def run(drawing: Drawing, record: Record, again: str = "") -> None:
    """Write what is drawn; whatever ends that early, one line says what is kept."""
    try:
        if record.entries:
            record.write_stats()
        with stage_bar() as progress, closing(drawing(progress)) as drawn:
            for job, update in drawn:
                record.add(job, update)
    except KeyboardInterrupt:
        stderr.print(f"stopped: {kept(record, again)}", soft_wrap=True, highlight=False)
        raise typer.Exit(130) from None
    except Exception as error:
        if not record.entries:
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise ValueError(f"{kind}{error}; {kept(record, again)}") from error


def kept(record: Record, again: str) -> str:
    if not record.entries:
        return "no image was finished"
    return f"{record.done} images are finished and kept; the same command{again} draws the rest"


def asked_for(prompts: Sequence[str], prompt_list: str | None) -> list[Asked]:
    """What arguments and lists ask for, in this order; ValueError when it says nothing."""
    named = [*prompts, *([] if prompt_list is None else [prompt_list])]
    if named.count(STDIN) > 1:
        raise ValueError("- is standard input, which can be read once; name it once")
    asked: list[Asked] = []
    for number, prompt in enumerate(prompts, 1):
        if prompt == STDIN:
            asked += read_prompt_list(STDIN)
        else:
            asked.append(Asked(prompt, "the prompt" if len(prompts) == 1 else f"prompt {number}"))
    if prompt_list is not None:
        asked += read_prompt_list(prompt_list)
    if not asked:
        raise ValueError("there is no PROMPT: give a sentence in quotes, --prompts FILE, or - for standard input")
    return asked


def first(asked: Asked) -> int:
    """The seed of the first image."""
    return asked.seed or 0


def paths_of(where: Output, asked: Sequence[Asked], num_images: int) -> list[Path | None]:
    """A path for each image, None for standard output; ValueError when an output of a list cannot be."""
    every = [(number, one, first(one) + n) for number, one in enumerate(asked, 1) for n in range(num_images)]
    named = where.paths([one.prompt for _, one, _ in every], [s for _, _, s in every], [n for n, _, _ in every])
    paths: list[Path | None] = []
    for path, (_, one, _) in zip(named, every, strict=True):
        if one.output is None:
            paths.append(None if where.stream else path)
            continue
        if not where.directory:
            raise ValueError(f"{one.place} names an output, which lies in the folder of --output; {where.path} is none")
        inside = Path(os.path.normpath(where.path.absolute() / one.output))
        if not inside.is_relative_to(where.path.absolute()):
            raise ValueError(f"{one.place}: output {one.output} leaves the folder of --output, {where.path}")
        paths.append(where.path / one.output)
    return paths


def check_paths(where: Output, paths: Sequence[Path | None], stats: Path | None, sheet: Path | None) -> None:
    """ValueError when a file cannot be written, or two are one."""
    if where.stream:
        if sheet is not None:
            raise ValueError("--sheet is for the images of a folder; name one with --output instead of -")
        if sys.stdout.isatty():
            raise ValueError("--output - would write a PNG to the terminal; redirect it: > image.png")
    made = where.path if where.directory else None
    if sheet is not None:
        check_suffix("--sheet", sheet)
        check_file("--sheet", sheet, made)
    if stats is not None:
        check_file("--stats", stats, made)
    files = [(path, "--output") for path in paths if path is not None]
    for path, option in files:
        check_below(option, path)
    taken: set[str] = set()
    for path, option in [*files, *((p, o) for p, o in ((stats, "--stats"), (sheet, "--sheet")) if p is not None)]:
        name = os.path.normpath(path.absolute())
        if name in taken:
            raise ValueError(f"{option}: {path} is to be written twice; give each file a name of its own")
        taken.add(name)


def check_words(family: Family, asked: Sequence[Asked]) -> list[str]:
    """Warnings for words that the family does not know, each once; errors say where in a list."""
    warnings: dict[str, None] = {}
    for one in asked:
        try:
            warnings.update(dict.fromkeys(family.check_prompts([one.prompt])))
        except ValueError as error:
            if " line " not in one.place:
                raise
            raise ValueError(f"{one.place}: {error}") from error
    return list(warnings)


def jobs_of(
    asked: Sequence[Asked],
    num_images: int,
    paths: Sequence[Path | None],
    decoders: Sequence[Decoder],
    common: dict[str, str],
    given: Condition | None,
) -> list[Job]:
    """One job an image, with what its file is to remember."""
    jobs = []
    for i, path in enumerate(paths):
        k = i // num_images
        one, seed = asked[k], first(asked[k]) + i % num_images
        condition = None if given is None else given[k : k + 1]
        jobs.append(job_of(one.prompt, seed, decoders[k], path, common, condition))
    return jobs


def write_sheet(jobs: Sequence[Job], path: Path) -> None:
    """All images of a call with their prompts and seeds on one page."""
    from PIL import Image

    from ..measure.sheets import contact_sheet

    images = []
    for job in jobs:
        if job.path is not None:
            with Image.open(job.path) as image:
                images.append(image.convert("RGB"))
    contact_sheet(images, [f"{job.prompt} ({job.seed})" for job in jobs], path, size=max(128, images[0].width))
