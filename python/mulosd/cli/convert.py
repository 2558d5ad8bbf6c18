"""`mulosd convert`: released checkpoints to a family folder."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..files.texts import read_lines
from .console import count_bar, examples, stdout
from .files import check_parent

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make a family of the released checkpoints of LlamaGen or Tar. docs/checkpoints.md walks through it.",
)


class StoredDtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


WHERE = "A file, a folder that holds it, or a repository (with huggingface_hub)."
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="The folder of the family to make.")]
VQOption = Annotated[str, typer.Option("--vq", help=f"The image tokenizer, such as vq_ds16_t2i.pt. {WHERE}")]
HeadsOption = Annotated[
    int | None,
    typer.Option(help="Attention heads of a model whose sizes are not those of a released one.", show_default=False),
]
StoredOption = Annotated[
    StoredDtype | None, typer.Option("--dtype", help="Of the stored AR weights.", show_default="as in the file")
]


@app.command(
    "llamagen",
    epilog=examples(
        "mulosd convert llamagen --drafter t2i_XL_stage1_256.pt --target t2i_XL_stage2_512.pt --vq vq_ds16_t2i.pt "
        "--output families/llamagen",
        "mulosd convert llamagen --target c2i_B_256.pt --vq vq_ds16_c2i.pt --output families/imagenet",
    ),
)
def llamagen(
    target: Annotated[str, typer.Option(help=f"The AR model of the largest images. {WHERE}")],
    vq: VQOption,
    output: OutputOption,
    drafter: Annotated[
        str | None, typer.Option(help=f"The AR model of smaller images, which drafts. {WHERE}", show_default=False)
    ] = None,
    target_size: Annotated[
        int | None, typer.Option(help="Pixels a side.", show_default="by the file's arguments or name")
    ] = None,
    drafter_size: Annotated[
        int | None, typer.Option(help="Pixels a side.", show_default="by the file's arguments or name")
    ] = None,
    heads: HeadsOption = None,
    class_names: Annotated[
        Path | None, typer.Option(help="A file with the name of each class, one a line.", show_default=False)
    ] = None,
    text_encoder: Annotated[
        str, typer.Option(help="Encoder of captions, for transformers: a folder or a repository.")
    ] = "google/flan-t5-xl",
    dtype: StoredOption = None,
) -> None:
    """Make a family of LlamaGen checkpoints: the text-conditional pair, or class-conditional models."""
    check_parent("--output", output)
    names = None
    if class_names is not None:
        if not class_names.is_file():
            raise ValueError(f"--class-names {class_names}: there is no such file")
        names = [line.strip() for line in read_lines(class_names) if line.strip()]

    import torch

    from ..checkpoints.convert import convert_llamagen

    with count_bar() as report:
        written = convert_llamagen(
            target,
            vq,
            output,
            drafter=drafter,
            target_size=target_size,
            drafter_size=drafter_size,
            heads=heads,
            class_names=names,
            text_encoder=text_encoder,
            dtype=None if dtype is None else getattr(torch, dtype.value),
            report=report,
        )
    tell(written)


@app.command(
    "tar",
    epilog=examples(
        "mulosd convert tar --ar 256=ar_dtok_lp_256px.pth --ar 512=ar_dtok_lp_512px.pth "
        "--ar 1024=ar_dtok_lp_1024px.pth --ta-tok ta_tok.pth --vq vq_ds16_t2i.pt "
        "--llm csuhan/Tar-1.5B --output families/tar"
    ),
)
def tar(
    ar: Annotated[list[str], typer.Option(help=f"PIXELS=FILE, once for each AR model. {WHERE}")],
    ta_tok: Annotated[str, typer.Option(help=f"The text-aligned tokenizer, ta_tok.pth. {WHERE}")],
    vq: VQOption,
    output: OutputOption,
    llm: Annotated[
        str | None,
        typer.Option(
            help="The language model, for transformers: a folder or a repository; without, prompts need --features.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        int | None, typer.Option(help="Features an image: 729, 169 or 81.", show_default="as in the AR files")
    ] = None,
    heads: HeadsOption = None,
    dtype: StoredOption = None,
) -> None:
    """Make a family of Tar's AR de-tokenizers, one for each size, and its text-aligned tokenizer."""
    check_parent("--output", output)
    files: dict[int, str | Path] = {}
    for entry in ar:
        pixels, equals, source = entry.partition("=")
        if not equals or not pixels.isdecimal() or not source or int(pixels) in files:
            raise ValueError(f"--ar {entry}: write PIXELS=FILE, each size once, such as 512=ar_dtok_lp_512px.pth")
        files[int(pixels)] = source

    import torch

    from ..checkpoints.convert import convert_tar

    with count_bar() as report:
        written = convert_tar(
            files,
            ta_tok,
            vq,
            output,
            llm=llm,
            prefix=prefix,
            heads=heads,
            dtype=None if dtype is None else getattr(torch, dtype.value),
            report=report,
        )
    tell(written)


def tell(folder: Path) -> None:
    stdout.print(
        f"{folder}: next, mulosd info {folder}, and mulosd calibrate --family {folder}", soft_wrap=True, highlight=False
    )
