"""`mulosd generate`: sentences to PNG files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from .._version import __version__
from ..atomic import atomic, write_json
from .console import examples, stage_bar, stdout, warn
from .files import Output, check_file
from .options import (
    DecoderName,
    DeviceOption,
    Dtype,
    DtypeOption,
    FamilyOption,
    Refresh,
    Rejection,
    ScaleOption,
    SeedOption,
    Upsampler,
    make_decoder,
    make_sampling,
    upsampler_of,
)

if TYPE_CHECKING:
    from .. import GenerationResult, SamplingParams

EXAMPLES = examples(
    'mulosd generate "a cat left of a guitar on a yellow background" --output cat.png',
    'mulosd generate "two penguins on a pink background" --num-images 4 --seed 7 --output penguins/',
    'mulosd generate "an apple" "a panda" --decoder serial --output out/ --stats out.json',
    'mulosd generate "a rocket" --scale 2 --tau 0.02 --radius 1 --cfg-scale 3 --output rocket.png',
    'mulosd generate "a frog" --window 2 --draft-window 2 --output frog.png',
    'mulosd generate "a frog" --family families/mine --decoder eagle --depth 3 --lantern-k 64 --output frog.png',
    "mulosd generate sunflower --family families/photo --num-images 4 --output sunflowers/",
    "mulosd generate sunflower --family families/photo --refine 1 --output sunflower.png",
    'mulosd generate "a photo of a macaw" --family families/tar --scale 2 --features macaw.npy --output macaw.png',
)


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One sentence a picture, each in quotes.")],
    family: FamilyOption = "emoji",
    decoder: Annotated[
        DecoderName,
        typer.Option(
            help="mulo drafts small, then verifies; draft-only never verifies; zipar overlaps rows; "
            "jacobi guesses ahead; eagle drafts trees with a trained drafter; serial is plain AR."
        ),
    ] = DecoderName.mulo,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A .png file, or a directory (made if missing) that gets SLUG-seedN.png for each."
        ),
    ] = Path(),
    stats: Annotated[
        Path | None, typer.Option(help="Also write settings, seconds and forward counts to this JSON file.")
    ] = None,
    seed: SeedOption = 0,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures of each prompt.")] = 1,
    scale: ScaleOption = None,
    tau: Annotated[
        float | None,
        typer.Option(help="Reject tokens whose pooled probability is below this.", show_default="calibrated"),
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(help="Tokens around a rejected one that are resampled too.", show_default="family"),
    ] = None,
    pool: Annotated[
        int | None, typer.Option(help="Codebook neighbours whose probability is pooled.", show_default="family")
    ] = None,
    upsampler: Annotated[
        Upsampler | None, typer.Option(help="How drafts are enlarged.", show_default="the family's")
    ] = None,
    sr_weights: Annotated[
        Path | None,
        typer.Option(help="Enlarge with this super-resolution network (spandrel).", show_default=False),
    ] = None,
    rejection: Annotated[
        Rejection | None,
        typer.Option(help="Resample a rejected token's surroundings, it alone, or all after it.", show_default="local"),
    ] = None,
    rows_per_cycle: Annotated[
        int | None, typer.Option(help="Target rows of each draft-verify cycle.", show_default="all, in one shot")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="mulo: resample islands in lock-step with this ZipAR window; zipar, jacobi: their window.",
            show_default="one token a forward; zipar 4, jacobi 16",
        ),
    ] = None,
    draft_window: Annotated[
        int | None, typer.Option(help="Draft with ZipAR and this window.", show_default="serially")
    ] = None,
    draft_guesses: Annotated[
        int | None,
        typer.Option(help="Guess so many draft tokens a forward (Jacobi): the same draft, sooner.", show_default="off"),
    ] = None,
    refresh: Annotated[
        Refresh | None,
        typer.Option(
            help="Accepted tokens whose keys and values are renewed behind resampled ones.", show_default="none"
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Verify and repair this often.", show_default="once")] = None,
    cascade: Annotated[
        bool | None,
        typer.Option("--cascade", help="Go through the grids in between, each verified.", show_default="off"),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            help="Redraw the enlarged draft this often before it is verified: more texture.", show_default="0"
        ),
    ] = None,
    entropy_tau: Annotated[
        float | None,
        typer.Option(help="Lower tau by exp(-this x entropy) where the target is unsure.", show_default="0"),
    ] = None,
    entropy_radius: Annotated[
        float | None, typer.Option(help="Cells of radius more for each nat of entropy.", show_default="0")
    ] = None,
    verify_dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the verify pass; bfloat16 is fast.", show_default="--dtype")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="eagle: layers of the draft tree.", show_default="4")] = None,
    tree_top_k: Annotated[
        int | None,
        typer.Option("--tree-top-k", help="eagle: children of a node, and nodes a layer expands.", show_default="4"),
    ] = None,
    total: Annotated[
        int | None, typer.Option(help="eagle: drafted tokens that are verified in one forward.", show_default="12")
    ] = None,
    coupled: Annotated[
        bool | None,
        typer.Option("--coupled", help="eagle: the very tokens that serial would draw.", show_default="off"),
    ] = None,
    lantern_k: Annotated[
        int | None,
        typer.Option(help="eagle: accept as LANTERN does, with so many nearest codes; lossy.", show_default="off"),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="eagle: most probability that LANTERN borrows from near codes.", show_default="0.2"),
    ] = None,
    cfg_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is off.", show_default="family")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token.", show_default="family")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k likeliest tokens; 0 is off.", show_default="family")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest tokens up to this mass; 1 is off.", show_default="family"),
    ] = None,
    cfg_interval: Annotated[
        int | None,
        typer.Option(
            help="Guide this many steps, then draw from the conditional branch; -1 guides all.", show_default="family"
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Precomputed conditions of the prompts (.npy) instead of the family's encoder.", show_default=False
        ),
    ] = None,
    collapse_prefix: Annotated[
        bool, typer.Option("--collapse-prefix", help="Keep the condition in one cache slot, exactly (LlamaGen).")
    ] = False,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
) -> None:
    """Turn each PROMPT into pictures, and print the seconds and the forward passes that they took.

    The settings travel in the PNG's metadata. Words that the family does not know are ignored, with a warning.
    """
    check_prompts(prompts)
    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {num_images}")
    where = Output.check(output, len(prompts) * num_images)
    if stats is not None:
        check_file("--stats", stats, where.path if where.directory else None)
    chosen = make_decoder(
        decoder,
        {
            "scale": scale,
            "tau": tau,
            "radius": radius,
            "pool": pool,
            "upsampler": upsampler_of(upsampler, sr_weights),
            "rejection": rejection and rejection.value,
            "rows_per_cycle": rows_per_cycle,
            "window": window,
            "draft_window": draft_window,
            "draft_guesses": draft_guesses,
            "refresh": refresh and refresh.value,
            "rounds": rounds,
            "cascade": cascade,
            "refine": refine,
            "entropy_tau": entropy_tau,
            "entropy_radius": entropy_radius,
            "verify_dtype": verify_dtype and verify_dtype.value,
            "depth": depth,
            "tree_top_k": tree_top_k,
            "total": total,
            "coupled": coupled,
            "lantern_k": lantern_k,
            "delta": delta,
        },
    )

    from .. import Engine, SchedulerConfig
    from .features import read_features

    config = SchedulerConfig(collapse_prefix=collapse_prefix)
    engine = Engine.from_pretrained(family, device=device, dtype=dtype.value, config=config)
    given = None if features is None else read_features(features, engine.family, len(prompts))
    sampling = make_sampling(
        engine,
        {
            "cfg_scale": cfg_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "cfg_interval": cfg_interval,
        },
    )
    with stage_bar() as progress:
        result = engine.generate(
            prompts,
            decoder=chosen,
            sampling=sampling,
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
    entries = save(result, paths, engine.family.name, decoder, sampling, dtype.value)
    if stats is not None:
        write_json(stats, {"version": __version__, "images": entries, "warnings": result.warnings})


def check_prompts(prompts: list[str]) -> None:
    """ValueError when a prompt says nothing."""
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            which = "the prompt" if len(prompts) == 1 else f"prompt {number}"
            raise ValueError(f'{which} is empty; describe a picture, such as "a cat on a blue background"')


def save(
    result: GenerationResult,
    paths: list[Path],
    family: str,
    decoder: DecoderName,
    sampling: SamplingParams,
    dtype: str,
) -> list[dict[str, Any]]:
    """Write the pictures with their settings as PNG text, print a line each, and return what --stats records."""
    from PIL.PngImagePlugin import PngInfo

    entries = []
    for path, image, prompt, seed, figures in zip(
        paths, result.images, result.prompts, result.seeds, result.stats, strict=True
    ):
        settings = {
            "prompt": prompt,
            "seed": str(seed),
            "family": family,
            "decoder": decoder.value,
            "settings": json.dumps(figures.settings),
            "sampling": json.dumps(sampling.to_dict()),
            "dtype": dtype,
            "version": __version__,
            "Software": f"mulosd {__version__}",
        }
        info = PngInfo()
        for key, value in settings.items():
            info.add_text(key, value)
        with atomic(path) as file:
            image.save(file, format="PNG", pnginfo=info)
        stdout.print(
            f"[bold]{escape(str(path))}[/]  seed {seed}\n  {escape(str(figures))}", soft_wrap=True, highlight=False
        )
        entries.append(
            {
                "file": str(path),
                "prompt": prompt,
                "family": family,
                "sampling": sampling.to_dict(),
                "dtype": dtype,
                **figures.to_dict(),
            }
        )
    return entries
