"""`mulosd serve`: the OpenAI images API over one or several families."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import examples
from .memory import parse_memory
from .options import DECODER_TEXT, USUAL_DECODER, DeviceOption, DtypeOption, Quantization, QuantizationOption

EXAMPLES = examples(
    "mulosd serve",
    "mulosd serve --family emoji --family photo --max-running 16",
    "MULOSD_API_KEY=secret mulosd serve --host 0.0.0.0 --log-format json",
    "mulosd serve --served-model-name gpt-image-1 --image-store /srv/images",
)


def serve(
    family: Annotated[list[str], typer.Option(help="A bundled family or the folder of one; repeat it for more.")] = [  # noqa: B006
        "emoji"
    ],
    host: Annotated[str, typer.Option(help="Address; beyond this machine with a key, or --insecure.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 is any that is free.", min=0, max=65535)] = 8000,
    uds: Annotated[Path | None, typer.Option(help="A Unix socket in place of these.", show_default=False)] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = None,
    quantization: QuantizationOption = Quantization.none,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", metavar=DECODER_TEXT, help="Of requests that name none.", show_default=USUAL_DECODER),
    ] = None,
    quality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="QUALITY=DECODER",
            help="What a quality of the API draws with, such as high=serial; repeat it.",
            show_default="low=draft-only, high=jacobi",
        ),
    ] = None,
    max_running: Annotated[int, typer.Option(help="Images that run at a time.")] = 8,
    kv_budget: Annotated[
        str | None, typer.Option(help="KV cache of a family, such as 2GiB.", show_default="no limit")
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Images that may wait beside; one more is refused (429).")] = 64,
    max_n: Annotated[int, typer.Option(help="Images of one request.")] = 10,
    max_prompt_chars: Annotated[int, typer.Option(help="Letters of a prompt.")] = 4000,
    max_body: Annotated[str, typer.Option(help="Size of a request.")] = "64KiB",
    request_timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 120,
    drain_delay: Annotated[float, typer.Option(help="Seconds between SIGTERM and the wait for requests.")] = 0,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that requests under way are given then.")] = 30,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="MULOSD_API_KEY", help="A key that requests must have; repeat it for more.", show_default=False
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys, one a line.", exists=True, dir_okay=False, show_default=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a key.")] = False,
    metrics_open: Annotated[bool, typer.Option("--metrics-open", help="/metrics needs no key.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="A further port for /metrics and /health, without a key.", show_default=False)
    ] = None,
    size_policy: Annotated[
        str, typer.Option(help="A size that is not the family's: strict refuses it, nearest draws the nearest.")
    ] = "strict",
    root_path: Annotated[
        str, typer.Option(help="Prefix that a proxy puts the server below, such as /images.", show_default=False)
    ] = "",
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin that may ask from a browser; repeat it.", show_default=False)
    ] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="A further name of the first family; repeat it.", show_default=False)
    ] = None,
    image_store: Annotated[
        Path | None, typer.Option(help="Folder for images of response_format=url.", show_default=False)
    ] = None,
    no_page: Annotated[bool, typer.Option("--no-page", help="Serve no page for people at /.")] = False,
    log_format: Annotated[str, typer.Option(help="text or json: a line a request.")] = "text",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Put prompts into the log.")] = False,
    no_warmup: Annotated[bool, typer.Option("--no-warmup", help="Be ready before an image was drawn.")] = False,
) -> None:
    """Serve the OpenAI images API, with previews, metrics, and a page for people at /.

    SIGTERM and Ctrl-C let requests under way end (exit code 0; 1 when some could not), a second one ends at once.
    """
    from ..serve import Settings, check_extra
    from ..serve.settings import QUALITIES

    check_extra()
    keys = [*(api_key or []), *([] if api_key_file is None else api_key_file.read_text().split())]
    settings = Settings(
        families=tuple(family),
        host=host,
        port=port,
        uds=None if uds is None else str(uds),
        device=device,
        dtype=dtype and dtype.value,
        quantization=quantization.value,
        decoder=decoder,
        qualities=QUALITIES | dict(map(split_quality, quality or [])),
        max_running=max_running,
        kv_budget=None if kv_budget is None else parse_memory(kv_budget, "--kv-budget"),
        max_waiting=max_waiting,
        max_n=max_n,
        max_prompt_chars=max_prompt_chars,
        max_body=parse_memory(max_body, "--max-body"),
        request_timeout=request_timeout,
        drain_delay=drain_delay,
        drain_timeout=drain_timeout,
        api_keys=tuple(keys),
        insecure=insecure,
        metrics_open=metrics_open,
        metrics_port=metrics_port,
        size_policy=size_policy,
        root_path=root_path,
        cors_origins=tuple(cors_origin or []),
        served_names=tuple(served_model_name or []),
        image_store=image_store,
        page=not no_page,
        log_format=log_format,
        log_prompts=log_prompts,
        warmup=not no_warmup,
    )

    from ..serve.run import serve as run

    raise typer.Exit(run(settings))


def split_quality(text: str) -> tuple[str, str]:
    """A quality and its decoder."""
    name, equals, decoder = text.partition("=")
    if not equals:
        raise ValueError(f"--quality {text!r}: write QUALITY=DECODER, such as high=serial")
    return name.strip(), decoder.strip()
