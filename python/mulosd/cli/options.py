"""Options that several commands share, and how their texts become decoders and sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..absent import SQUARE

if TYPE_CHECKING:
    from .. import SamplingParams
    from ..engine.decoding import Decoder
    from ..engine.family import Family


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


FamilyOption = Annotated[str, typer.Option(help="A bundled family, folder or OWNER/NAME.")]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
DevicesOption = Annotated[
    str | None,
    typer.Option(
        metavar="0,1,…",
        help="A list shared among GPUs, or cpu,cpu.",
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        metavar="TYPE",
        help="float32 (exact), bfloat16 or float16.",
        show_default="bfloat16 on a GPU, float32 elsewhere",
    ),
]


class Quantization(str, Enum):
    none = "none"
    int8 = "int8"
    fp8 = "fp8"


QuantizationOption = Annotated[
    Quantization,
    typer.Option(metavar="TYPE", help="Layers in int8 or fp8."),
]
SizeOption = Annotated[
    str | None,
    typer.Option(metavar="PX", help="Side: a size of the family; its largest.", show_default=False),
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same image, whatever the batch.")]
DECODER_TEXT = "NAME:KEY=…"
# What `engine.decoding.default` chooses, in words.
USUAL_DECODER = "mulo or serial"
OwnDecoderOption = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        metavar=DECODER_TEXT,
        help="Such as mulo:scale=4:tau=0.02; all: `mulosd decoders`.",
        show_default=USUAL_DECODER,
    ),
]
DecoderOption = Annotated[
    str,
    typer.Option(
        "--decoder",
        metavar=DECODER_TEXT,
        help="Such as mulo:scale=4:tau=0.02; all: `mulosd decoders`.",
    ),
]
DECODERS_HELP = "Decoder and settings, such as mulo:scale=4:tau=none; several: repeat it, or separate by commas."
DecodersOption = Annotated[list[str], typer.Option("--decoder", metavar=DECODER_TEXT, help=DECODERS_HELP)]


def decoders_option(usual: Sequence[str]) -> Any:
    """`--decoder` of a command that draws with `usual`, as far as they can draw the family, where none is named."""
    shown = f"{', '.join(usual)}, those that can"
    return typer.Option("--decoder", metavar=DECODER_TEXT, help=DECODERS_HELP, show_default=shown)


SamplingOption = Annotated[
    str,
    typer.Option(
        "--sampling",
        metavar="KEY=VALUE:…",
        help="Such as cfg_scale=3:top_k=100; also temperature, top_p, cfg_interval. What is left out is the family's.",
        show_default=False,
    ),
]


def read_decoders(texts: list[str]) -> list[Decoder]:
    """The decoders that `--decoder` names, repeated or separated by commas; ValueError says what there is."""
    from ..engine.decoding import parse
    from .respelled import check_gone

    single = [text for part in texts for text in part.split(",") if text.strip()]
    for text in single:
        check_gone(text)
    return [parse(text) for text in single]


def read_decoder(text: str) -> Decoder:
    """The one decoder that `--decoder` names."""
    found = read_decoders([text])
    if len(found) != 1:
        raise ValueError(f"--decoder {text!r}: this command takes one decoder, such as mulo:scale=4:tau=0.02")
    return found[0]


def read_size(text: str | None) -> int | None:
    """The side in px that `--size` names, "256" or "256x256"; None is none. ValueError for any other shape."""
    if text is None:
        return None
    width, cross, height = text.strip().lower().removesuffix("px").partition("x")
    if not (width.isdecimal() and (height.isdecimal() or not cross)):
        raise ValueError(f"--size {text!r}: give a side in px, such as 256; `mulosd info` lists those of a family")
    if cross and int(width) != int(height):
        raise ValueError(f"--size {text}: {SQUARE}, name their side: --size {min(int(width), int(height))}")
    return int(width)


def read_sampling(family: Family, text: str) -> SamplingParams:
    """The family's own sampling parameters with those of a text such as `cfg_scale=3:top_k=100` on top."""
    return family.sampling.changed(text or None)


def read_devices(device: str, devices: str | None) -> list[str]:
    """The devices that `--device` and `--devices` name; a number is a GPU.

    Raises:
        ValueError: both options are given, a device is not there, or a GPU is named twice.
    """
    if devices is None:
        return [device]
    if device != "cpu":
        raise ValueError(f"--device {device} and --devices {devices}: give one of the two")

    from ..engine.devices import checked_device

    names = [f"cuda:{name}" if name.isdecimal() else name for name in map(str.strip, devices.split(","))]
    for name in names:
        try:
            found = checked_device(name)
        except ValueError as error:
            raise ValueError(f"--devices {devices}: {error}") from error
        if found.type == "cuda" and found.index is None:
            raise ValueError(f"--devices {devices}: number the GPUs, such as 0,1")
        if found.type == "cuda" and names.count(name) > 1:
            raise ValueError(f"--devices {devices}: {name} is named twice; one process draws on a GPU")
    return names


def spell_sampling(sampling: SamplingParams) -> str:
    """The text that `read_sampling` reads as these parameters."""
    from ..engine.arguments import spelled

    return ":".join(f"{key}={spelled(value)}" for key, value in sampling.to_dict().items())


def sized(decoder: Decoder, size: int | None, family: Family) -> Decoder:
    """A decoder that draws images of `size` px, see `engine.decoding.size.sized`; None is what it draws anyway."""
    from ..engine.decoding.size import sized as of_size

    return decoder if size is None else of_size(decoder, size, family, "--")


def dtype_name(dtype: Dtype | None, device: str) -> str:
    """The type that an engine computes in on a device, by name."""
    from ..engine.dtypes import settled_dtype

    return str(settled_dtype(dtype and dtype.value, device)).removeprefix("torch.")
