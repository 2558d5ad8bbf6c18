"""`mulosd batch`: long lists of prompts, in parts, by one engine or by many."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from .console import Lines, Pipe, count_bar, examples, stderr, warn
from .options import (
    DeviceOption,
    DtypeOption,
    FamilyOption,
    OwnDecoderOption,
    Quantization,
    QuantizationOption,
    SamplingOption,
    SeedOption,
    SizeOption,
    read_size,
)

if TYPE_CHECKING:
    from ..batch import Counts, Painters, Recipe

EXAMPLES = examples(
    "mulosd batch prompts.csv --out images/",
    "mulosd batch captions.parquet --out images/ --family photo --decoder mulo:scale=4",
    "mulosd batch prompts.jsonl --out /shared/images --ray --ray-address auto --device cuda",
)


def batch(
    prompts: Annotated[str, typer.Argument(metavar="FILE", help="Text, CSV, JSONL or Parquet; - is stdin.")],
    out: Annotated[Path, typer.Option("--out", "--output", "-o", help="Folder for images and their rows.")],
    family: FamilyOption = "emoji",
    decoder: OwnDecoderOption = None,
    sampling: SamplingOption = "",
    seed: SeedOption = 0,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Images of each line.", min=1)] = 1,
    size: SizeOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Draw what is in the folder again.")] = False,
    max_running: Annotated[int, typer.Option(help="Images that an engine draws at a time.", min=1)] = 8,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    ray: Annotated[bool, typer.Option("--ray", help="Draw by actors of Ray.")] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="A cluster, such as auto; one of this machine's own if absent.")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Engines; as many as fit into the cluster.", min=1)] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs of an actor; 1 with --device cuda.", min=0)] = None,
) -> None:
    """Draw a list of prompts into a folder; the same call again draws what is missing.

    Lines that cannot be and images that fail are rows of errors.jsonl, and the others go on: the exit code is 1 then.
    """
    from ..batch import Folder, Recipe, run

    if not ray and (ray_address is not None or actors is not None or gpus is not None):
        raise ValueError("--ray-address, --actors and --gpus are for --ray")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be a whole number of 0 or more, below 2**63, got {seed}")
    folder = Folder(out)
    recipe = Recipe(
        family,
        device,
        dtype and dtype.value,
        decoder,
        sampling,
        seed,
        num_images,
        read_size(size),
        max_running,
        quantization.value,
    )
    lines = Lines(Pipe())
    with painters_of(recipe, ray, ray_address, actors, gpus) as painters, count_bar() as bar:
        counts = None
        try:
            counts = run(
                prompts,
                folder,
                recipe,
                painters,
                overwrite=overwrite,
                fail=warn,
                warn=warn,
                progress=lambda done, total: bar("drawing", done, total),
            )
        except KeyboardInterrupt:
            stderr.print("stopped: what is finished is kept; the same command draws the rest", soft_wrap=True)
            raise typer.Exit(130) from None
    lines.print(f"[bold]{escape(str(out))}[/]  {told(counts)}")
    if not counts.complete:
        raise typer.Exit(1)


def told(counts: Counts) -> str:
    """What a batch came to, for a person."""
    text = f"{counts.found + counts.drawn} of {counts.images} images, {counts.drawn} drawn now"
    return text + (f"; {counts.failed} failed, see errors.jsonl" if counts.failed else "")


@contextmanager
def painters_of(
    recipe: Recipe, ray: bool, address: str | None, actors: int | None, gpus: float | None
) -> Generator[Painters, None, None]:
    """Who draws."""
    from ..batch import Painter

    if not ray:
        yield Painter(recipe)
        return
    from ..ray import check_extra

    check_extra()
    from ..ray.actors import Actors

    with Actors(recipe, address=address, count=actors, gpus=gpus, tell=warn) as pool:
        yield pool
