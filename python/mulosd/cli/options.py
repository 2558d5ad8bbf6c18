"""Options that several commands share, and how they become decoders and sampling parameters."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .. import Engine, SamplingParams
    from ..engine.decoding import Decoder


class DecoderName(str, Enum):
    """Decoders by the name that the command line gives them."""

    mulo = "mulo"
    serial = "serial"
    draft_only = "draft-only"
    zipar = "zipar"
    jacobi = "jacobi"
    eagle = "eagle"


class Upsampler(str, Enum):
    latent = "latent"
    pixel = "pixel"
    srgan = "srgan"
    sr = "sr"


class Rejection(str, Enum):
    local = "local"
    naive = "naive"
    raster = "raster"


class Refresh(str, Enum):
    none = "none"
    rows = "rows"
    full = "full"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# Which decoder options each decoder has; the rest are refused rather than ignored.
TAKES = {
    DecoderName.mulo: (
        "scale",
        "tau",
        "radius",
        "pool",
        "upsampler",
        "rejection",
        "rows_per_cycle",
        "window",
        "draft_window",
        "draft_guesses",
        "refresh",
        "rounds",
        "cascade",
        "refine",
        "entropy_tau",
        "entropy_radius",
        "verify_dtype",
    ),
    DecoderName.draft_only: ("scale", "upsampler", "draft_window", "draft_guesses"),
    DecoderName.zipar: ("window",),
    DecoderName.jacobi: ("window",),
    DecoderName.eagle: ("depth", "tree_top_k", "total", "coupled", "lantern_k", "delta"),
    DecoderName.serial: (),
}

# Options that cannot have the name of the setting, which another option has.
RENAMED = {"tree_top_k": "top_k"}

FamilyOption = Annotated[str, typer.Option(help="A bundled family or the folder of one; `mulosd info` lists them.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
DtypeOption = Annotated[Dtype, typer.Option(help="float32 is exact and reproducible; the others may be faster.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same picture, whatever the batch.")]
ScaleOption = Annotated[
    int | None,
    typer.Option(help="Ratio of target to draft side, 2 or 4 \\[default: the family's].", show_default=False),
]

DecoderOption = Annotated[
    str,
    typer.Option("--decoder", metavar="NAME[:KEY=VALUE…]", help="Decoder and settings, such as mulo:scale=4:tau=0.02."),
]
DecodersOption = Annotated[
    list[str],
    typer.Option(
        "--decoder",
        metavar="NAME[:KEY=VALUE…]",
        help="Decoder and settings, such as mulo:scale=4:tau=none; several: repeat it, or separate by commas.",
    ),
]


def read_decoders(texts: list[str]) -> list[Decoder]:
    """The decoders that `--decoder` names, repeated or separated by commas; ValueError says what there is."""
    from ..engine.decoding import parse

    return [parse(text) for part in texts for text in part.split(",") if text.strip()]


def make_decoder(name: DecoderName, options: dict[str, Any]) -> Decoder:
    """A decoder from the options that were given (None: not given); ValueError for one that it does not have."""
    from ..engine.decoding import decoder_class

    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in TAKES[name]:
            owners = ", ".join(decoder.value for decoder, keys in TAKES.items() if key in keys)
            raise ValueError(
                f"--{key.replace('_', '-')} has no meaning for --decoder {name.value}, only for: {owners}; leave it out"
            )
    return decoder_class(name.value).from_settings({RENAMED.get(key, key): value for key, value in given.items()})


def upsampler_of(name: Upsampler | None, weights: Path | None) -> str | None:
    """The up-sampler that two options name; None when neither is given. ValueError when they contradict."""
    if weights is None:
        return None if name is None else name.value
    if name not in (None, Upsampler.sr):
        raise ValueError(f"--sr-weights {weights} has no meaning with --upsampler {name.value}; leave one of them out")
    return str(weights)


def make_sampling(engine: Engine, options: dict[str, Any]) -> SamplingParams:
    """The family's own sampling parameters with what was given on top."""
    from dataclasses import replace

    given = {key: value for key, value in options.items() if value is not None}
    return replace(engine.family.sampling, **given)
