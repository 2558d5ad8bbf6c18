"""`mulosd bench serve`: a running server under load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .bench_options import JsonOption, finish
from .bench_speed import parse_counts
from .console import count_bar, examples
from .files import check_file
from .options import DECODER_TEXT, SeedOption

EXAMPLES = examples(
    "mulosd bench serve --concurrency 1,4,8 --requests 64",
    "mulosd bench serve --request-rate 2,4 --deadline 1 --partial-images 1 --json serve.json",
    "mulosd bench serve --url https://images.example.org --api-key $KEY --concurrency 16",
)


def serve(
    url: Annotated[str, typer.Option(help="Address of `mulosd serve`.")] = "http://127.0.0.1:8000",
    concurrency: Annotated[
        str | None,
        typer.Option(help="Closed loop, comma-separated: requests at a time.", show_default="1, without a rate"),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option(help="Open loop, comma-separated: requests a second (Poisson).", show_default="none"),
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of each load.")] = 32,
    model: Annotated[str | None, typer.Option(help="A model of the server.", show_default="its first")] = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", metavar=DECODER_TEXT, help="As for generate.", show_default="its own"),
    ] = None,
    partial_images: Annotated[int, typer.Option(help="Previews of each image, 0 to 3; 0 asks for JSON.")] = 0,
    deadline: Annotated[float, typer.Option(help="Seconds within which an image counts for goodput.")] = 2.0,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Prompts, one a line.", show_default="of the family's words")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MULOSD_API_KEY", help="Of the server.", show_default=False)
    ] = None,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Latency, first preview, images a second and goodput of a running server."""
    if json_file is not None:
        check_file("--json", json_file)

    from ..measure.speed.serving import Client, Load, bench_serving, prompts_of, serving_table

    loads = [Load(concurrency=n) for n in parse_counts("--concurrency", concurrency)] if concurrency else []
    loads += [Load(rate=rate) for rate in parse_rates(request_rate)] if request_rate else []
    asked = Client(url.rstrip("/"), api_key)
    models = {found["id"]: found["mulosd"] for found in asked.get("/v1/models")["data"]}
    if model is not None and model not in models:
        raise ValueError(f"--model {model}: this server has {', '.join(models)}")
    name = model or next(iter(models))
    body: dict[str, Any] = {"model": name}
    if partial_images:
        body |= {"stream": True, "partial_images": partial_images}
    if decoder is not None:
        body["mulosd"] = {"decoder": decoder}
    if prompts_file is None:
        prompts = prompts_of(models[name], requests, seed)
    else:
        from ..measure.prompts import read_prompts

        prompts = read_prompts(prompts_file)
    with count_bar() as bar:
        report = bench_serving(
            Client(asked.url, api_key, body),
            loads or [Load(concurrency=1)],
            prompts,
            requests=requests,
            deadline=deadline,
            seed=seed,
            progress=bar,
        )
    finish(report, json_file, serving_table(report))


def parse_rates(text: str) -> list[float]:
    """Comma-separated rates, each above 0."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(f"--request-rate {text!r}: give numbers above 0, separated by commas, such as 0.5,2")
    return rates
