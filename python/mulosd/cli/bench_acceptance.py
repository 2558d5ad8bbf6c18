"""`mulosd bench acceptance`: what the target accepts, by where the tokens come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..atomic import write_json
from .console import count_bar, examples, stdout
from .files import check_file, check_pictures
from .options import DeviceOption, Dtype, DtypeOption, FamilyOption, ScaleOption, SeedOption, Upsampler

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = examples(
    "mulosd bench acceptance --prompts 32",
    "mulosd bench acceptance --family families/aligned --tau 4e-5 --pool 1 --json after.json",
    "mulosd bench acceptance --family families/llamagen --images photos --tau 1e-3 --pool 10",
    "mulosd bench acceptance --family photo --config configs/photo.yaml --upsampler latent",
)


def acceptance(
    family: FamilyOption = "emoji",
    prompts: Annotated[int, typer.Option(help="Held-out prompts, or classes.")] = 32,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Take prompts from this file instead, one a line.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of captioned pictures for the rows of real ones.", show_default="scenes, if any"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Training file (YAML) whose held-out pictures are the real ones.", show_default=False),
    ] = None,
    scale: ScaleOption = None,
    tau: Annotated[float | None, typer.Option(help="Least probability.", show_default="calibrated")] = None,
    pool: Annotated[int | None, typer.Option(help="Codes pooled.", show_default="calibrated")] = None,
    upsampler: Annotated[
        Upsampler | None, typer.Option(help="How drafts are enlarged.", show_default="the family's")
    ] = None,
    draft_window: Annotated[
        int | None, typer.Option(help="Draft with ZipAR and this window.", show_default="calibrated, else serially")
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.", show_default=False)
    ] = None,
) -> None:
    """Share of tokens that the target accepts: its own samples, real pictures, up-sampled ones, drafts.

    Says whether the up-sampler or the drafter loses what is rejected, before and after `mulosd train align-upsampler`
    or `mulosd train distill`. Give both families the same --tau, --pool and --draft-window: the new one has no
    calibration that they could come from.
    """
    if prompts < 1:
        raise ValueError(f"--prompts must be at least 1, got {prompts}")
    if draft_window is not None and draft_window < 1:
        raise ValueError(f"--draft-window must be at least 1 token, got {draft_window}; leave it out for serial")
    check_pictures(images, config)
    if json_file is not None:
        check_file("--json", json_file)

    import numpy as np

    from ..engine.decoding import MuloSD
    from ..engine.engine import Engine
    from ..eval.acceptance import measure_acceptance
    from ..eval.prompts import default_prompts, read_prompts
    from ..eval.references import REAL_SEED
    from ..train.family_alignment import pictures_of

    asked = None if prompts_file is None else read_prompts(prompts_file)
    engine = Engine.from_pretrained(family, device=device, dtype=dtype.value)
    # The radius decides nothing here, but a decoder without one asks for a calibration.
    method = None if upsampler is None else upsampler.value
    decoder = MuloSD(scale, tau, 0, pool, method, draft_window=draft_window).resolve(engine.family)
    own = asked or default_prompts(engine, prompts, seed)
    source = pictures_of(engine.family, images, held_out=True, config=config)
    ratio, target = decoder.scale or 1, engine.family.image_sizes[-1]
    sizes = (target // ratio, target)
    rngs = [np.random.default_rng([REAL_SEED, seed, i]) for i in range(len(own))]
    pictures = [] if source is None else [source.captioned(rng, sizes) for rng in rngs]
    with count_bar() as bar:
        report = measure_acceptance(engine, own, decoder, pictures=pictures, seed=seed, progress=bar)
    if json_file is not None:
        write_json(json_file, report)
    stdout.print(acceptance_table(report))


def acceptance_table(report: dict[str, Any]) -> Table:
    """The rows of a report."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=f"{report['family']}: tau {report['tau']:.3g}, pool {report['pool']}, scale {report['scale']}, "
        f"{report['upsampler']} up-sampler",
        caption=f"rejected tokens, % (95 % interval over pictures), NLL in nats a token; {report['prompts']} prompts, "
        f"{report['pictures']} real pictures; background: the commonest code of a picture",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("source", no_wrap=True)
    for heading in ("rejected", "foreground", "background", "NLL"):
        table.add_column(heading, justify="right", no_wrap=True)

    def rejected(cell: dict[str, Any]) -> str:
        return "-" if cell["value"] is None else f"{100 * (1 - cell['value']):.2f}"

    for row in report["rows"]:
        high, low = (100 * (1 - end) for end in row["accepted"]["ci95"])
        table.add_row(
            row["source"],
            f"{rejected(row['accepted'])} ({low:.2f}-{high:.2f})",
            rejected(row["foreground"]),
            rejected(row["background"]),
            "{value:.3f} ({ci95[0]:.3f}-{ci95[1]:.3f})".format(**row["nll"]),
        )
    return table
