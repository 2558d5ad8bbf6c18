"""Requests that tools/drawable.py makes of made-up ones: the family draws them, and broken ones stay as they are."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import load

for needed in ("fastapi", "uvicorn", "sse_starlette", "prometheus_client"):
    pytest.importorskip(needed)


@pytest.fixture
def tool() -> Any:
    return load("drawable")


def test_requests_become_ones_that_the_family_draws(tool: Any) -> None:
    from live import Told

    from mulosd.serve import Settings
    from mulosd.serve.errors import ApiError
    from mulosd.serve.schema import ImageRequest
    from mulosd.serve.served import Served

    served = Served(Told(), Settings(decoder="mulo:scale=2"))
    model = served.model().model_dump()
    odd: dict[str, Any] = {
        "prompt": "\x00\U0010ffff", "model": "?", "size": "0", "n": 10**30, "response_format": "url",
        "output_compression": 3, "background": "transparent", "mulosd": {"decoder": "", "top_k": 3},
    }  # fmt: skip
    sizes: list[int] = []
    refused: set[str | None] = set()
    for seed in range(60):
        body = ImageRequest.model_validate(tool.drawable(odd, model, random.Random(seed)))
        assert body.model == served.name and body.n in (1, 2) and body.mulosd and body.mulosd.top_k == 3
        try:
            found = served.ask(body)
        except ApiError as error:  # too many words for one image, or a decoder that has no such size
            refused.add(error.body["error"]["param"])
            continue
        sizes.append(found.size)
    assert refused <= {"prompt", "size", "mulosd.decoder", "mulosd"}
    assert len(sizes) >= 15 and len(set(sizes)) > 1, "many are drawn, of several sizes"
    assert odd["prompt"] == "\x00\U0010ffff" and odd["mulosd"]["decoder"] == "", "what was made up is not changed"


@pytest.mark.parametrize(
    ("mode", "body", "kept"),
    [("positive", {"prompt": "x"}, True), ("negative", {"prompt": "x"}, False), ("positive", {"prompt": 3}, False),
     ("positive", [], False)],
)  # fmt: skip
def test_what_breaks_the_schema_stays_as_it_is(tool: Any, mode: str, body: Any, kept: bool) -> None:
    meta = SimpleNamespace(generation=SimpleNamespace(mode=SimpleNamespace(value=mode)))
    assert tool.keeps(SimpleNamespace(meta=meta, body=body)) is kept
