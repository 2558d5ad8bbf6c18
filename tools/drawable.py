"""Hooks of schemathesis: most of the requests that it makes up become ones that a family can draw.

A prompt, a size or a decoder out of the schema alone is text of any kind, and nearly every request with one is refused,
so that what lies behind the checks is hardly met. Here requests that keep to the schema get, three times in four, a
prompt of the family's words, one of its sizes, a decoder, and few images; the others, and all that break the schema,
stay as they are. MULOSD_MODEL names a file with what GET /v1/models/{id} says of the family:

    MULOSD_MODEL=model.json SCHEMATHESIS_HOOKS=drawable PYTHONPATH=tools st run http://127.0.0.1:8000/openapi.json
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

SHARE = 0.75
MOST_IMAGES = 2
SETTINGS = (":scale=2", ":tau=0.02", ":rows_per_cycle=4")
# Fields of fixed meaning whose other values a server without a folder for images refuses.
REFUSED = {"response_format": "url", "background": "transparent"}


def drawable(body: dict[str, Any], model: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A request like it that `model` can draw, most often one of its small sizes, which take less time.

    Args:
        body: keeps to the schema of POST /v1/images/generations.
        model: what the server says of the family.
        rng: what is drawn from.
    """
    facts = model["mulosd"]
    words = [*facts["words"], *facts["classes"]] or [facts["example"]]
    joined = rng.randint(1, 4) if facts["words"] else 1
    made = {**body, "prompt": " ".join(rng.choice(words) for _ in range(joined))}
    if made.get("model") is not None:
        made["model"] = model["id"]
    smallest, *larger = sorted(facts["image_sizes"], key=lambda size: int(size.partition("x")[0]))
    made["size"] = rng.choice([*[smallest] * 4, *larger, "auto"])
    if made.get("n") is not None:
        made["n"] = 1 + made["n"] % MOST_IMAGES
    for name, value in REFUSED.items():
        if made.get(name) == value:
            made[name] = None
    if made.get("output_compression") is not None and made.get("output_format") in (None, "png"):
        made["output_format"] = rng.choice(("webp", "jpeg"))
    options = made.get("mulosd")
    if options is not None and options.get("decoder") is not None:
        text = rng.choice([name for name in facts["decoders"] if name != "eagle"])
        made["mulosd"] = {**options, "decoder": text + (rng.choice(SETTINGS) if text == "mulo" else "")}
    return made


def keeps(case: Any) -> bool:
    """Whether a case is a request for images that keeps to the schema."""
    kind = case.meta.generation.mode.value if case.meta is not None else "positive"
    return kind == "positive" and isinstance(case.body, dict) and isinstance(case.body.get("prompt"), str)


if "MULOSD_MODEL" in os.environ:
    import schemathesis

    MODEL = json.loads(Path(os.environ["MULOSD_MODEL"]).read_text())

    @schemathesis.hook
    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        if not keeps(case):
            return
        # The same case is the same request: a failure can be had again.
        rng = random.Random(json.dumps(case.body, sort_keys=True, default=str))
        if rng.random() < SHARE:
            case.body = drawable(case.body, MODEL, rng)
