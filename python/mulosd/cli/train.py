"""`mulosd train`: the stages of a family, one command each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from .console import examples, stdout
from .files import check_file, check_parent, check_pictures
from .options import DeviceOption

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train a family of one's own, stage by stage. docs/training.md walks through it.",
)

# In the order in which they build on each other.
STAGES = {
    "tokenizer": "Train the VQ tokenizer: pictures to tokens and back.",
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
StepsOption = Annotated[
    int | None, typer.Option(help="Stop after this many steps.", show_default="from the training file")
]


def run_stages(
    stages: tuple[str, ...], config: Path, run: Path, steps: int | None, device: str, variants: Sequence[str] = ()
) -> None:
    """Run stages one after the other, or variants of the one stage that is given."""
    if not config.is_file():
        raise ValueError(f"--config {config}: there is no such file; configs/emoji.yaml is an example")
    if run.exists() and not run.is_dir():
        raise ValueError(f"--run {run} is a file; name a folder")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")

    from ..train.config import FamilyConfig
    from ..train.stages import run_stage
    from ..train.variants import varied

    if variants:
        for variant in variants:
            varied(FamilyConfig.load(config), variant)  # a mistake in the last one shows before the first is trained
        for variant in variants:
            run_stage(stages[0], config, run, device=device, steps=steps, variant=variant)
        return
    if len(stages) > 1:
        written = FamilyConfig.load(config).values
        stages = tuple(s for s in stages if s in written or s not in OPTIONAL)
    for stage in stages:
        run_stage(stage, config, run, device=device, steps=steps)


def stage_command(stages: tuple[str, ...]) -> Callable[..., None]:
    def command(config: ConfigOption, run: RunOption, steps: StepsOption = None, device: DeviceOption = "cpu") -> None:
        run_stages(stages, config, run, steps, device)

    return command


for name, purpose in STAGES.items():
    if name == "upsampler":
        continue  # it takes a finished family as well
    app.command(
        name, help=purpose, epilog=examples(f"mulosd train {name} --config configs/emoji.yaml --run runs/emoji")
    )(stage_command((name,)))

app.command(
    "all",
    help=f"Run {', '.join(ALL)} one after the other; finished stages are skipped.",
    epilog=examples("mulosd train all --config configs/emoji.yaml --run runs/emoji --device cuda"),
)(stage_command(ALL))


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
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, for --family.", show_default=False)] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Train this one of upsampler.variants instead, further from the averaged weights of the stage, with "
            "--config; may be given several times.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        list[int] | None, typer.Option(help="Ratio to train for, with --family.", show_default="all of the family")
    ] = None,
    down: Annotated[
        bool, typer.Option("--down", help="Train the down-samplers of multi-cycle decoding too, with --family.")
    ] = False,
    batch: Annotated[int, typer.Option(help="Pictures a step, with --family.")] = 4,
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
        raise ValueError(f"--images {images}: name a folder of pictures to learn from")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if batch < 1:
        raise ValueError(f"--batch must be at least 1, got {batch}")

    from ..train.family_upsampler import train_upsampler

    trained = train_upsampler(
        family,
        images,
        run,
        scales=tuple(scale) if scale else None,
        down=down,
        steps=steps,
        batch=batch,
        adversarial=adversarial,
        device=device,
    )
    stdout.print(
        f"{family}: has the latent resamplers {', '.join(trained)}; next, mulosd calibrate --family {family}",
        soft_wrap=True,
        highlight=False,
    )


OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the family to write.")]
FamilyOption = Annotated[str, typer.Option(help="A finished family, by name or folder; it is left as it is.")]
ImagesOption = Annotated[
    Path | None,
    typer.Option(help="Folder of captioned pictures to train on.", show_default="scenes, if the family has them"),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help="File of prompts to draw for, one a line.", show_default="classes, or captions of the pictures"),
]
ScaleOption = Annotated[int | None, typer.Option(help="Ratio to train for.", show_default="the family's")]


@app.command(
    "align-upsampler",
    epilog=examples(
        "mulosd train align-upsampler --family emoji --run runs/align --output families/aligned",
        "mulosd train align-upsampler --family families/llamagen --images photos --run runs/l --output families/l "
        "--device cuda",
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
        typer.Option(help="Training file (YAML) whose pictures to train on, for --images.", show_default=False),
    ] = None,
    prompts_file: PromptsOption = None,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 400,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-4,
    batch: Annotated[int, typer.Option(help="Drafts, and real pictures, a step.")] = 8,
    pool: Annotated[int, typer.Option(help="Drafts to draw; each is used again and again.")] = 1024,
    every: Annotated[
        int,
        typer.Option(help="Judge drafts in every so-manieth step, for it costs most; 0 trains on real pictures alone."),
    ] = 4,
    confidence: Annotated[float, typer.Option(help="Nats of entropy up to which the target is listened to.")] = 0.7,
    agreement: Annotated[float, typer.Option(help="Weight of staying with the old up-sampler.")] = 0.1,
    real: Annotated[float, typer.Option(help="Weight of real pictures, where there are any.")] = 1.0,
    temperature: Annotated[
        float, typer.Option(help="Of cosines to codes: about the difference between codes to be told apart.")
    ] = 5e-4,
    seed: Annotated[int, typer.Option(help="Of drafts and batches.")] = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Train a latent up-sampler on the drafter's own drafts, to give tokens that the target accepts."""
    checked_alignment(output, images, config, steps, batch, pool, agreement=agreement, real=real, confidence=confidence)
    if not 0 < temperature < math.inf:
        raise ValueError(f"--temperature must be above 0, got {temperature}")
    if every < 0:
        raise ValueError(f"--every must be 0 or more, got {every}")

    from ..measure.prompts import read_prompts
    from ..train.family_alignment import align_upsampler as train

    written = train(
        family,
        output,
        run,
        scale=scale,
        images=images,
        config=config,
        prompts=() if prompts_file is None else read_prompts(prompts_file),
        steps=steps,
        lr=lr,
        device=device,
        seed=seed,
        batch=batch,
        pool=pool,
        every=every,
        confidence=confidence,
        agreement=agreement,
        real=real,
        temperature=temperature,
    )
    stdout.print(f"{written}: next, mulosd calibrate --family {written}", soft_wrap=True, highlight=False)


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
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 400,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-5,
    batch: Annotated[int, typer.Option(help="Samples of the target, and drafts, a step.")] = 8,
    pool: Annotated[int, typer.Option(help="Samples of the target to draw; each is used again and again.")] = 512,
    confidence: Annotated[float, typer.Option(help="Nats of entropy up to which the target is listened to.")] = 0.7,
    own: Annotated[float, typer.Option(help="Weight of the target's own samples.")] = 1.0,
    drafted: Annotated[float, typer.Option(help="Weight of the target's judgement of drafts.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of samples and batches.")] = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Train the drafter towards its target, on the target's own samples and on drafts that the target judges.

    A drafter that shares its network with the target gets a copy of its own; the target stays as it is.
    """
    checked_alignment(output, images, None, steps, batch, pool, own=own, drafted=drafted, confidence=confidence)
    if own == drafted == 0:
        raise ValueError("--own and --drafted are both 0: there is nothing to learn from")

    from ..measure.prompts import read_prompts
    from ..train.family_alignment import distill_drafter as train

    written = train(
        family,
        output,
        run,
        scale=scale,
        images=images,
        prompts=() if prompts_file is None else read_prompts(prompts_file),
        steps=steps,
        lr=lr,
        device=device,
        seed=seed,
        batch=batch,
        pool=pool,
        confidence=confidence,
        own=own,
        drafted=drafted,
    )
    stdout.print(f"{written}: next, mulosd calibrate --family {written}", soft_wrap=True, highlight=False)


def checked_alignment(
    output: Path, images: Path | None, config: Path | None, steps: int, batch: int, pool: int, **weights: float
) -> None:
    """What both alignments ask of their options; ValueError before anything is loaded."""
    for option, count in (("--steps", steps), ("--batch", batch), ("--pool", pool)):
        if count < 1:
            raise ValueError(f"{option} must be at least 1, got {count}")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"--{name} must be 0 or more, got {weight}")
    check_pictures(images, config)
    check_parent("--output", output)


@app.command(
    "preview",
    epilog=examples("mulosd train preview --config configs/photo.yaml --run runs/photo --output preview.png"),
)
def preview(
    config: ConfigOption,
    run: RunOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")],
    count: Annotated[int, typer.Option(help="Held-out pictures to show.")] = 8,
    size: Annotated[int | None, typer.Option(help="Their side in px.", show_default="the tokenizer's largest")] = None,
) -> None:
    """Show held-out pictures beside what the tokenizer of a run makes of them."""
    check_file("--output", output)
    if count < 1 or (size is not None and size < 1):
        raise ValueError(f"--count and --size must be at least 1, got {count} and {size}")

    from ..train.preview import preview as write

    quality = write(config, run, output, count=count, size=size)
    stdout.print(f"{output}: {count} pictures, {quality:.1f} dB", soft_wrap=True, highlight=False)


@app.command(
    "reference",
    epilog=examples(
        "mulosd train reference --config configs/photo.yaml --family families/photo",
        "mulosd train reference --config configs/photo.yaml --family families/photo --count 500",
    ),
)
def reference(
    config: ConfigOption,
    family: Annotated[Path, typer.Option(help="The folder of a family that `train export` wrote.")],
    count: Annotated[
        int,
        typer.Option(help="Held-out photos to compare with, and as many more; at most half of those that there are."),
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
    if count < 4:
        raise ValueError(f"--count must be at least 4, got {count}")
    if not (family / "family.json").is_file():
        raise ValueError(f"--family {family}: there is no family folder; mulosd train export makes one")
    if output is not None:
        check_file("--output", output)

    from ..engine.family import Family
    from ..measure.kept_features import FILE
    from ..train.config import FamilyConfig
    from ..train.reference import keep_features

    photos = FamilyConfig.load(config).photos()
    kept = keep_features(photos, Family.load(family), count=count, device=device)
    path = family / FILE if output is None else output
    kept.save(path)
    stdout.print(f"{path}: twice {len(kept.real)} held-out photos", soft_wrap=True, highlight=False)


@app.command(
    "export",
    epilog=examples(
        "mulosd train export --config configs/emoji.yaml --run runs/emoji --output families/mine",
        "mulosd train export --config configs/photo.yaml --run runs/photo --variant patchgan --variant patchgan-r2 "
        "--output families/photo",
    ),
)
def export(
    config: ConfigOption,
    run: RunOption,
    output: OutputOption,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="Take the latent up-samplers of this variant; may be given several times.",
            show_default="those of train upsampler",
        ),
    ] = None,
    half_encoder: Annotated[
        bool,
        typer.Option(
            "--half-encoder",
            help="Round the tokenizer's encoder to float16, as all but the codebook is. Where codes are near each "
            "other, pictures then get other tokens.",
        ),
    ] = False,
) -> None:
    """Write the averaged weights of a run as a family that `--family DIR` takes."""
    if not run.is_dir():
        raise ValueError(f"--run {run}: there is no such folder; train into it first (mulosd train all)")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    check_parent("--output", output)

    from ..train.stages import export as write

    written = write(config, run, output, variant or (), half_encoder=half_encoder)
    stdout.print(f"{written}: next, mulosd calibrate --family {written}", soft_wrap=True, highlight=False)


@app.command(
    "attach",
    epilog=examples("mulosd train attach --config configs/emoji_32.yaml --run runs/emoji --family families/mine"),
)
def attach(
    config: ConfigOption,
    run: RunOption,
    family: Annotated[Path, typer.Option(help="The folder of the family that gets the drafter.")],
) -> None:
    """Give an existing family folder the feature drafter of a run (mulosd train eagle), for `--decoder eagle`."""
    if not run.is_dir():
        raise ValueError(f"--run {run}: there is no such folder; train into it first (mulosd train eagle)")
    if not (family / "family.json").is_file():
        raise ValueError(f"--family {family}: there is no family folder; mulosd train export makes one")

    from ..train.stages import attach as write

    stdout.print(f"{write(config, run, family)}: written", soft_wrap=True, highlight=False)


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
    if size < 1:
        raise ValueError(f"--size must be at least 1 px, got {size}")
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output}: the sheet is a PNG; use {output.with_suffix('.png')}")
    check_file("--output", output)

    from ..data.sprites import render_icons
    from ..train.config import FamilyConfig

    objects = FamilyConfig.load(config).data.get("objects")
    if not objects:
        raise ValueError(f"{config} lists no objects; sprites are for data.kind 'scenes'")
    icons = {name: spec[0] for name, spec in objects.items()}
    render_icons(pack, icons, size).save(output)
    stdout.print(f"{output}: {len(icons)} sprites of {size} px", soft_wrap=True, highlight=False)
