"""`mulosd generate`: sentences to PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .._version import __version__
from ..atomic import atomic, write_json
from .console import examples, stage_bar, stdout, warn
from .files import Output, check_file
from .options import (
    DecoderOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    FamilyOption,
    SamplingOption,
    SeedOption,
    read_decoder,
    read_sampling,
    spell_sampling,
)

if TYPE_CHECKING:
    from .. import GenerationResult

EXAMPLES = examples(
    'mulosd generate "a cat left of a guitar on a yellow background" --output cat.png',
    'mulosd generate "two penguins on a pink background" --num-images 4 --seed 7 --output penguins/',
    'mulosd generate "an apple" "a panda" --decoder serial --output out/ --stats out.json',
    "mulosd generate sunflower --family photo --decoder mulo:scale=4:radius=1 --sampling cfg_scale=3",
)


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One sentence an image, each in quotes.")],
    family: FamilyOption = "emoji",
    decoder: DecoderOption = "mulo",
    sampling: SamplingOption = "",
    seed: SeedOption = 0,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Images of each prompt.")] = 1,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A PNG file, or a folder for SLUG-seedN.png.")
    ] = Path(),
    stats: Annotated[Path | None, typer.Option(help="Also write settings, seconds and counts to this JSON.")] = None,
    features: Annotated[Path | None, typer.Option(help="Conditions (.npy) instead of the family's encoder.")] = None,
    collapse_prefix: Annotated[
        bool, typer.Option("--collapse-prefix", help="Keep the condition in one cache slot (LlamaGen).")
    ] = False,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
) -> None:
    """Turn each PROMPT into images, and print the seconds and the forward passes that they took.

    The PNG remembers its settings. Words that the family does not know are ignored, with a warning.
    """
    check_prompts(prompts)
    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {num_images}")
    where = Output.check(output, len(prompts) * num_images)
    if stats is not None:
        check_file("--stats", stats, where.path if where.directory else None)
    chosen = read_decoder(decoder)

    from .. import Engine, SchedulerConfig
    from .features import read_features

    config = SchedulerConfig(collapse_prefix=collapse_prefix)
    engine = Engine.from_pretrained(family, device=device, dtype=dtype.value, config=config)
    given = None if features is None else read_features(features, engine.family, len(prompts))
    params = read_sampling(engine, sampling)
    with stage_bar() as progress:
        result = engine.generate(
            prompts,
            decoder=chosen,
            sampling=params,
            seed=seed,
            num_images=num_images,
            progress=progress,
            features=given,
        )
    for warning in result.warnings:
        warn(warning)
    numbers = [i // num_images + 1 for i in range(len(result.images))]
    paths = where.paths(result.prompts, result.seeds, numbers)
    if where.directory:
        where.path.mkdir(exist_ok=True)
    settings = {"family": engine.family.name, "sampling": spell_sampling(params), "dtype": dtype.value}
    entries = save(result, paths, settings)
    if stats is not None:
        write_json(stats, {"version": __version__, "images": entries, "warnings": result.warnings})


def check_prompts(prompts: list[str]) -> None:
    """ValueError when a prompt says nothing."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            which = "the prompt" if len(prompts) == 1 else f"prompt {number}"
            raise ValueError(f'{which} is empty; describe an image, such as "a cat on a blue background"')


def save(result: GenerationResult, paths: list[Path], settings: dict[str, str]) -> list[dict[str, Any]]:
    """Write the images with their settings as PNG text, print a line each, and return what --stats records."""
    from PIL.PngImagePlugin import PngInfo

    entries = []
    for path, image, prompt, seed, figures in zip(
        paths, result.images, result.prompts, result.seeds, result.stats, strict=True
    ):
        info = PngInfo()
        written = {"prompt": prompt, "seed": str(seed), "decoder": figures.spelling, **settings, "version": __version__}
        for key, value in {**written, "Software": f"mulosd {__version__}"}.items():
            info.add_text(key, value)
        with atomic(path) as file:
            image.save(file, format="PNG", pnginfo=info)
        stdout.print(
            f"[bold]{escape(str(path))}[/]  seed {seed}\n  {escape(str(figures))}", soft_wrap=True, highlight=False
        )
        entries.append({"file": str(path), "prompt": prompt, **settings, **figures.to_dict()})
    return entries
