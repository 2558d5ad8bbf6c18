"""`mulosd bench photos` and `bench sheet`: class-conditional photographs judged, and images to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .bench_options import JsonOption, PromptsFileOption, check_options, finish
from .console import count_bar, examples, stdout
from .files import check_file
from .options import DecoderOption, DeviceOption, FamilyOption, OwnDecoderOption, SeedOption, read_decoder

PHOTOS_EXAMPLES = examples(
    "mulosd bench photos --family families/photo --config configs/photo.yaml --run runs/photo --images 256",
    "mulosd bench photos --family families/photo --config configs/photo.yaml --run runs/photo --decoder mulo:tau=0.01 "
    "--json photos.json",
)
SHEET_EXAMPLES = examples(
    "mulosd bench sheet --family families/photo --prompts 16 --each 4 --output sheet.png",
    "mulosd bench sheet --family families/photo --prompts-file classes.txt --decoder serial --output sheet.png",
)


def photos(
    config: Annotated[Path, typer.Option(help="The training file (YAML), whose archive holds the real photos.")],
    run: Annotated[Path, typer.Option(help="The run, with the features that `train classifier` keeps.")],
    family: FamilyOption = "photo",
    decoder: DecoderOption = "serial",
    images: Annotated[int, typer.Option(help="Images to draw, of the classes of so many held-out photos.")] = 256,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    json_file: JsonOption = None,
) -> None:
    """Judge a family of photos: KID-Lite0 against held-out photos, class accuracy, distance to training photos.

    Features of the archive are taken from the run, or made there first (minutes on a CPU).
    """
    if images < 4:
        raise ValueError(f"--images must be at least 4, got {images}")
    check_options(images, {"--json": json_file})

    from .. import Engine
    from ..measure.images import as_array
    from ..measure.photos import PhotoJudge, in_words
    from ..measure.readers.classes import FILE, ClassReader
    from ..measure.readers.lite0 import Lite0Features
    from ..measure.sheets import drawn
    from ..train.classifier import FEATURES, photo_features
    from ..train.config import TrainingFile

    how = read_decoder(decoder)
    training = TrainingFile.load(config)
    archive = training.photos()
    engine = Engine.from_pretrained(family, device=device)
    network = Lite0Features(device)
    run.mkdir(parents=True, exist_ok=True)
    path = None if engine.family.path is None else engine.family.path / FILE
    reader = ClassReader.load(path) if path is not None and path.is_file() else None
    judge = PhotoJudge(
        archive,
        photo_features(archive, run / FEATURES, network),
        training.held_out_share,
        reader,
        network,
        engine.family.image_sizes[-1],
    )
    chosen = judge.drawn(images, seed)
    classes = archive.classes[chosen]
    asked = [(str(c), seed + i) for i, c in enumerate(classes)]
    with count_bar() as bar:
        made = drawn(engine, asked, how, lambda done, total: bar("generating", done, total))
    report = {
        "family": engine.family.name,
        "decoder": decoder,
        "seed": seed,
        **judge.report(classes, as_array(made)),
        "reconstruction": judge.reconstruction(engine, chosen),
    }
    finish(report, json_file)
    for line in in_words(report):
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


def sheet(
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write, such as sheet.png.")],
    family: FamilyOption = "emoji",
    prompts: Annotated[int, typer.Option(help="So many classes, or held-out prompts, of the family.")] = 16,
    prompts_file: PromptsFileOption = None,
    each: Annotated[int, typer.Option(help="Images of each prompt.")] = 4,
    decoder: OwnDecoderOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Draw a contact sheet of images as they come, none picked."""
    check_file("--output", output)
    if prompts < 1 or each < 1:
        raise ValueError(f"--prompts and --each must be at least 1, got {prompts} and {each}")

    from .. import Engine
    from ..measure.prompts import read_prompts, shown_prompts
    from ..measure.sheets import sheet as draw

    how = None if decoder is None else read_decoder(decoder)
    engine = Engine.from_pretrained(family, device=device)
    asked = read_prompts(prompts_file) if prompts_file is not None else shown_prompts(engine, prompts, seed)
    with count_bar() as bar:
        draw(
            engine, asked, output, each=each, decoder=how, seed=seed,
            progress=lambda done, total: bar("generating", done, total),
        )  # fmt: skip
    stdout.print(f"{output}: {len(asked)} prompts, {each} of each", soft_wrap=True, highlight=False)
