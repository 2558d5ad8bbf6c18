"""`mulosd train`: the stages of a family, one command each, and what is done with finished ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import count_bar, examples, stdout
from .files import check_file, check_images, check_parent
from .options import DeviceOption

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train your own family, stage by stage. docs/training.md walks through it.",
)

# In the order in which they build on each other.
STAGES = {
    "tokenizer": "Train the VQ tokenizer: images to tokens and back.",
    "captions": "Train the text encoder to say what a caption describes (scenes only); ar goes on from there.",
    "ar": "Train the AR transformer and its text encoder on every grid. Needs the tokenizer.",
    "text": "Train the text encoder alone, against a frozen AR transformer.",
    "upsampler": "Train the latent up- and down-samplers. Needs the tokenizer.",
    "srgan": "Train the super-resolution network of the up-sampler srgan. Needs the tokenizer.",
    "eagle": "Train the feature drafter of the decoder eagle against the frozen AR transformer of the run or a family.",
    "classifier": "Train the independent reader of classes that class accuracy is measured with (photos only).",
    "reader": "Train the independent reader that object accuracy is measured with, on real renders only.",
}
# `text` is left out: `ar` trains the text encoder along.
ALL = ("tokenizer", "captions", "ar", "upsampler", "srgan", "reader", "classifier", "eagle")
# Left out where the training file has no section for them.
OPTIONAL = ("captions", "srgan", "reader", "classifier", "eagle")

ConfigOption = Annotated[Path, typer.Option(help="The training file (YAML); configs/emoji.yaml is an example.")]
RunOption = Annotated[Path, typer.Option(help="Folder for checkpoints and logs; a run that it holds is resumed.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the family to write.")]
FamilyOption = Annotated[str, typer.Option(help="A finished family, by name or folder; it is left as it is.")]
FolderOption = Annotated[Path, typer.Option(help="The folder of a family that `train export` wrote.")]
StepsOption = Annotated[
    int | None, typer.Option(help="Stop after this many steps.", show_default="from the training file")
]
VariantOption = Annotated[
    list[str] | None,
    typer.Option(help="Latent up-samplers of upsampler.variants; may be repeated.", show_default="those of the stage"),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(help="Folder of captioned images to train on.", show_default="scenes, if the family has them"),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help="File of prompts to draw for, one a line.", show_default="classes, or captions of the images"),
]
ScaleOption = Annotated[int | None, typer.Option(help="Ratio to train for.", show_default="the family's")]
CountOption = Annotated[int, typer.Option(help="Steps of training.")]
RateOption = Annotated[float, typer.Option("--lr", help="Learning rate.")]
ConfidenceOption = Annotated[float, typer.Option(help="Entropy (nats) up to which the target is listened to.")]
DrawsOption = Annotated[int, typer.Option(help="Seed of what is drawn and of the batches.")]


def tell(text: str) -> None:
    stdout.print(text, soft_wrap=True, highlight=False)


def need_run(run: Path, command: str) -> None:
    if not run.is_dir():
        raise ValueError(f"--run {run}: there is no such folder; train into it first (mulosd train {command})")


def need_family(family: Path) -> None:
    if not (family / "family.json").is_file():
        raise ValueError(f"--family {family}: there is no family folder; mulosd train export makes one")


def at_least(least: int, **counts: int | None) -> None:
    """ValueError for an option (None: not given) below `least`."""
    for name, count in counts.items():
        if count is not None and count < least:
            raise ValueError(f"--{name} must be at least {least}, got {count}")


def run_stages(
    stages: tuple[str, ...], config: Path, run: Path, steps: int | None, device: str, variants: Sequence[str] = ()
) -> None:
    """Run stages one after the other, or variants of the one stage that is given."""
    if not config.is_file():
        raise ValueError(f"--config {config}: there is no such file; configs/emoji.yaml is an example")
    if run.exists() and not run.is_dir():
        raise ValueError(f"--run {run} is a file; name a folder")
    at_least(1, steps=steps)

    from ..train.config import TrainingFile
    from ..train.stages import check_data, run_stage
    from ..train.upsampler import varied

    for variant in variants:
        varied(TrainingFile.load(config), variant)  # a mistake in the last one shows before the first is trained
    if len(stages) > 1:
        written = TrainingFile.load(config).values
        stages = tuple(s for s in stages if s in written or s not in OPTIONAL)
    with count_bar() as bar:
        check_data(stages, TrainingFile.load(config), bar)
    for variant in variants:
        run_stage(stages[0], config, run, device=device, steps=steps, variant=variant, checked=True)
    for stage in () if variants else stages:
        run_stage(stage, config, run, device=device, steps=steps, checked=True)


def stage_command(stages: tuple[str, ...]) -> Callable[..., None]:
    def command(config: ConfigOption, run: RunOption, steps: StepsOption = None, device: DeviceOption = "cpu") -> None:
        run_stages(stages, config, run, steps, device)

    return command


COMMANDS = {
    **{name: (purpose, (name,)) for name, purpose in STAGES.items() if name != "upsampler"},  # which takes more
    "all": (f"Run {', '.join(ALL)} one after the other; finished stages are skipped.", ALL),
}
for name, (purpose, stages) in COMMANDS.items():
    example = examples(f"mulosd train {name} --config configs/emoji.yaml --run runs/emoji")
    app.command(name, help=purpose, epilog=example)(stage_command(stages))


@app.command(
    "upsampler",
    help=f"{STAGES['upsampler']} With --family and --images: the up-samplers of any finished family.",
    epilog=examples(
        "mulosd train upsampler --config configs/emoji.yaml --run runs/emoji",
        "mulosd train upsampler --config configs/photo.yaml --run runs/photo --variant pixel --variant patchgan",
        "mulosd train upsampler --family families/tar --images photos --run runs/tar --scale 2 --device cuda",
    ),
)
def upsampler(
    run: RunOption,
    config: Annotated[
        Path | None, typer.Option(help="The training file (YAML) of a family in training.", show_default=False)
    ] = None,
    family: Annotated[
        Path | None, typer.Option(help="Folder of a finished family, which gets the up-samplers.", show_default=False)
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images, for --family.", show_default=False)] = None,
    variant: VariantOption = None,
    scale: Annotated[
        list[int] | None, typer.Option(help="Ratio to train for, with --family.", show_default="all of the family")
    ] = None,
    down: Annotated[
        bool, typer.Option("--down", help="Train the down-samplers of multi-cycle decoding too, with --family.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Images a step, with --family.")] = 4,
    adversarial: Annotated[
        float, typer.Option(help="Weight of a patch discriminator, with --family; 0 is none, 0.1 a start.")
    ] = 0.0,
    steps: StepsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    if (config is None) == (family is None):
        raise ValueError("give either --config, for a family in training, or --family and --images, for a finished one")
    if config is not None:
        run_stages(("upsampler",), config, run, steps, device, variant or ())
        return
    if variant:
        raise ValueError("--variant is of a training file: give --config instead of --family")
    if family is None or images is None or not images.is_dir():
        raise ValueError(f"--images {images}: name a folder of images to learn from")
    at_least(1, steps=steps, batch=batch)

    from ..train.upsampler import train_upsampler

    ratios = tuple(scale) if scale else None
    options: dict[str, Any] = {"steps": steps, "batch": batch, "adversarial": adversarial, "device": device}
    trained = train_upsampler(family, images, run, scales=ratios, down=down, **options)
    tell(f"{family}: has the latent resamplers {', '.join(trained)}; next, mulosd calibrate --family {family}")


@app.command(
    "align-upsampler",
    epilog=examples(
        "mulosd train align-upsampler --family emoji --run runs/align --output families/aligned",
        "mulosd train align-upsampler --family families/llamagen --images photos --run runs/l --output families/l",
        "mulosd train align-upsampler --family photo --config configs/photo.yaml --run runs/p --output families/p "
        "--temperature 0.05 --confidence 2",
    ),
)
def align_upsampler(
    family: FamilyOption,
    run: RunOption,
    output: OutputOption,
    scale: ScaleOption = None,
    images: ImagesOption = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training file (YAML) whose images to train on, for --images.", show_default=False),
    ] = None,
    prompts_file: PromptsOption = None,
    steps: CountOption = 400,
    lr: RateOption = 3e-4,
    batch: Annotated[int, typer.Option(help="Drafts, and real images, a step.")] = 8,
    pool: Annotated[int, typer.Option(help="Drafts to draw; each is used many times.")] = 1024,
    every: Annotated[
        int, typer.Option(help="Judge drafts in every Nth step only, for it costs most; 0: real images alone.")
    ] = 4,
    confidence: ConfidenceOption = 0.7,
    agreement: Annotated[float, typer.Option(help="Weight of staying with the old up-sampler.")] = 0.1,
    real: Annotated[float, typer.Option(help="Weight of real images, where there are any.")] = 1.0,
    temperature: Annotated[
        float, typer.Option(help="Of cosines to codes: about the difference between codes to be told apart.")
    ] = 5e-4,
    seed: DrawsOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Train a latent up-sampler on the drafter's own drafts, to give tokens that the target accepts."""
    options = locals()
    if not 0 < temperature < math.inf:
        raise ValueError(f"--temperature must be above 0, got {temperature}")
    at_least(0, every=every)
    places, settings = alignment(options, agreement=agreement, real=real, confidence=confidence)

    from ..train.align import align_upsampler as write

    tell(f"{write(*places, **settings)}: next, mulosd calibrate --family {output}")


@app.command(
    "distill",
    epilog=examples(
        "mulosd train distill --family emoji --run runs/distill --output families/distilled",
        "mulosd train distill --family families/llamagen --run runs/d --output families/d --steps 2000 --device cuda",
    ),
)
def distill(
    family: FamilyOption,
    run: RunOption,
    output: OutputOption,
    scale: ScaleOption = None,
    images: ImagesOption = None,
    prompts_file: PromptsOption = None,
    steps: CountOption = 400,
    lr: RateOption = 3e-5,
    batch: Annotated[int, typer.Option(help="Samples of the target, and drafts, a step.")] = 8,
    pool: Annotated[int, typer.Option(help="Samples of the target to draw; each is used many times.")] = 512,
    confidence: ConfidenceOption = 0.7,
    own: Annotated[float, typer.Option(help="Weight of the target's own samples.")] = 1.0,
    drafted: Annotated[float, typer.Option(help="Weight of the target's judgement of drafts.")] = 1.0,
    seed: DrawsOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Train the drafter towards its target, on the target's own samples and on drafts that the target judges.

    A drafter that shares its network with the target gets its own copy; the target stays as it is.
    """
    options = locals()
    if own == drafted == 0:
        raise ValueError("--own and --drafted are both 0: there is nothing to learn from")
    places, settings = alignment(options, own=own, drafted=drafted, confidence=confidence)

    from ..train.distill import distill_drafter as write

    tell(f"{write(*places, **settings)}: next, mulosd calibrate --family {output}")


def alignment(options: dict[str, Any], **weights: float) -> tuple[list[Any], dict[str, Any]]:
    """Family, output and run of an alignment, and its settings: its options, checked."""
    at_least(1, steps=options["steps"], batch=options["batch"], pool=options["pool"])
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"--{name} must be 0 or more, got {weight}")
    check_images(options["images"], options.get("config"))
    check_parent("--output", options["output"])

    from ..measure.prompts import read_prompts

    file = options.pop("prompts_file")
    places = [options.pop(name) for name in ("family", "output", "run")]
    return places, {"prompts": () if file is None else read_prompts(file), **options}


@app.command(
    "preview",
    epilog=examples("mulosd train preview --config configs/photo.yaml --run runs/photo --output preview.png"),
)
def preview(
    config: ConfigOption,
    run: RunOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write.")],
    count: Annotated[int, typer.Option(help="Held-out images to show.")] = 8,
    size: Annotated[int | None, typer.Option(help="Their side in px.", show_default="the tokenizer's largest")] = None,
) -> None:
    """Show held-out images beside what the tokenizer of a run makes of them."""
    check_file("--output", output)
    at_least(1, count=count, size=size)

    from ..train.preview import preview as write

    tell(f"{output}: {count} images, {write(config, run, output, count=count, size=size):.1f} dB")


@app.command(
    "probe",
    epilog=examples(
        "mulosd train probe --config configs/emoji.yaml --run runs/emoji --grid 8 --prompts 48",
        "mulosd train probe --config configs/emoji.yaml --run runs/emoji --prompts 0",
    ),
)
def probe(
    config: ConfigOption,
    run: RunOption,
    grid: Annotated[
        list[int] | None, typer.Option(help="Grid to look at; may be repeated.", show_default="all")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts to draw with serial; 0: none.")] = 48,
    pairs: Annotated[int, typer.Option(help="Held-out pairs whose captions are swapped.")] = 48,
    seed: Annotated[int, typer.Option(help="Of scenes and images.")] = 0,
) -> None:
    """Look at a run of scenes in training: does it tell swapped captions apart, how many scenes are right?"""
    if not config.is_file():
        raise ValueError(f"--config {config}: there is no such file; configs/emoji.yaml is an example")
    need_run(run, "ar")
    at_least(0, prompts=prompts, seed=seed)
    at_least(1, pairs=pairs)

    from ..train.probe import probe as look

    for line in look(config, run, grid or [], prompts, pairs, seed):
        tell(line)


@app.command(
    "reference",
    epilog=examples("mulosd train reference --config configs/photo.yaml --family families/photo --count 500"),
)
def reference(
    config: ConfigOption,
    family: FolderOption,
    count: Annotated[
        int, typer.Option(help="Held-out photos to compare with, and as many more; at most half of what there is.")
    ] = 256,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write.", show_default="reference.npz in the family's folder"),
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Keep features of held-out photos, which evaluations of the family then compare with (photos only).

    `train export` does the same where the run has a classifier.
    """
    at_least(4, count=count)
    need_family(family)
    if output is not None:
        check_file("--output", output)

    from ..engine.family import Family
    from ..measure.kept_features import FILE
    from ..train.config import TrainingFile
    from ..train.reference import keep_features

    kept = keep_features(TrainingFile.load(config).photos(), Family.load(family), count=count, device=device)
    path = family / FILE if output is None else output
    kept.save(path)
    tell(f"{path}: twice {len(kept.real)} held-out photos")


@app.command(
    "export",
    epilog=examples(
        "mulosd train export --config configs/emoji.yaml --run runs/emoji --output families/mine",
        "mulosd train export --config configs/photo.yaml --run runs/photo --variant patchgan --output families/photo",
    ),
)
def export(
    config: ConfigOption,
    run: RunOption,
    output: OutputOption,
    variant: VariantOption = None,
    half_encoder: Annotated[
        bool,
        typer.Option(
            "--half-encoder", help="Round the tokenizer's encoder to float16; near codes may then be confused."
        ),
    ] = False,
) -> None:
    """Write the averaged weights of a run as a family that `--family DIR` takes."""
    need_run(run, "all")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    check_parent("--output", output)

    from ..train.export import export as write

    written = write(config, run, output, variant or (), half_encoder=half_encoder)
    tell(f"{written}: next, mulosd calibrate --family {written}")


@app.command(
    "attach",
    epilog=examples("mulosd train attach --config configs/emoji.yaml --run runs/emoji --family families/mine"),
)
def attach(config: ConfigOption, run: RunOption, family: FolderOption) -> None:
    """Give an existing family folder the feature drafter of a run (mulosd train eagle), for `--decoder eagle`."""
    need_run(run, "eagle")
    need_family(family)

    from ..train.eagle import attach as write

    tell(f"{write(config, run, family)}: written")


@app.command(
    "sprites",
    epilog=examples(
        "mulosd train sprites --pack node_modules/@iconify-json/fluent-emoji-flat --config configs/emoji.yaml "
        "--output sprites.png"
    ),
)
def sprites(
    pack: Annotated[Path, typer.Option(help="Folder of an Iconify icon pack, or its icons.json.")],
    config: ConfigOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG sheet to write.")],
    size: Annotated[int, typer.Option(help="Side of a sprite in px.")] = 96,
) -> None:
    """Render the objects of a training file from an icon pack into one sprite sheet."""
    if not pack.exists():
        raise ValueError(
            f"--pack {pack}: there is no such folder; npm install @iconify-json/fluent-emoji-flat makes one"
        )
    at_least(1, size=size)
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output}: the sheet is a PNG; use {output.with_suffix('.png')}")
    check_file("--output", output)

    from ..data.sprites import render_icons
    from ..train.config import TrainingFile

    objects = TrainingFile.load(config).data.get("objects")
    if not objects:
        raise ValueError(f"{config} lists no objects; sprites are for data.kind 'scenes'")
    icons = {name: spec[0] for name, spec in objects.items()}
    render_icons(pack, icons, size).save(output)
    tell(f"{output}: {len(icons)} sprites of {size} px")
