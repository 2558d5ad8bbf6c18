"""The OpenAI images API as its own client sees it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from mulosd.cli.image_files import read_settings


def client(server: Any, **options: Any) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", **{"max_retries": 0, **options})


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def pixels(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(opened(text).convert("RGB"))


def test_images_are_those_of_the_engine(server: Any) -> None:
    wanted = server.engine.generate("red apple", seed=7, num_images=3)
    found = client(server).images.generate(prompt="red apple", n=3, model="random", extra_body={"seed": 7})
    assert [image.mulosd["seed"] for image in found.data] == wanted.seeds
    for image, other in zip(found.data, wanted.images, strict=True):
        assert np.array_equal(pixels(image.b64_json), np.asarray(other))
    assert (found.size, found.output_format, found.background, found.quality) == ("16x16", "png", "opaque", "medium")
    assert (found.usage.output_tokens, found.usage.input_tokens) == (3 * 64, 3 * 4)
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.created > 1_700_000_000 and found._request_id.startswith("req_")


def test_a_file_states_what_draws_it_again(server: Any, tmp_path: Any) -> None:
    extra = {"seed": 3, "guidance_scale": 2.0, "mulosd": {"decoder": "mulo:scale=2:tau=0.03", "top_k": 9}}
    for kind in ("png", "webp", "jpeg"):
        found = client(server).images.generate(prompt="a red pear", output_format=kind, extra_body=extra)
        file = tmp_path / f"image.{kind}"
        file.write_bytes(base64.b64decode(found.data[0].b64_json))
        stated = read_settings(file)
        assert stated is not None and opened(found.data[0].b64_json).format == kind.upper()
        again = server.engine.generate(
            stated["prompt"], seed=int(stated["seed"]), decoder=stated["decoder"], sampling=stated["sampling"]
        )
        if kind != "jpeg":
            assert np.array_equal(pixels(found.data[0].b64_json), np.asarray(again.images[0]))
        assert "top_k=9" in stated["sampling"] and "scale=2" in stated["decoder"]


def test_compression_makes_files_smaller(server: Any) -> None:
    sizes = [
        len(server.post(seed=1, output_format="jpeg", output_compression=q).json()["data"][0]["b64_json"])
        for q in (5, 100)
    ]
    assert sizes[0] < sizes[1]


def test_a_seed_is_drawn_and_told_and_draws_the_same_again(server: Any) -> None:
    first, second = server.post().json()["data"][0], server.post().json()["data"][0]
    assert first["mulosd"]["seed"] != second["mulosd"]["seed"] and first["mulosd"]["seed"] < 2**53
    again = server.post(seed=first["mulosd"]["seed"]).json()["data"][0]
    assert again["b64_json"] == first["b64_json"]


def test_a_stream_sharpens_and_ends_with_the_image(server: Any) -> None:
    whole = server.post(seed=5, mulosd={"decoder": "mulo:scale=2:tau=0.05:rows_per_cycle=4"}).json()
    events = list(
        client(server).images.generate(
            prompt="apple",
            stream=True,
            partial_images=3,
            extra_body={"seed": 5, "mulosd": {"decoder": "mulo:scale=2:tau=0.05:rows_per_cycle=4", "maps": True}},
        )
    )
    assert [type(e).__name__ for e in events] == ["ImageGenPartialImageEvent"] * 3 + ["ImageGenCompletedEvent"]
    assert [e.partial_image_index for e in events[:3]] == [0, 1, 2]
    assert [e.mulosd["kind"] for e in events[:3]] == ["draft", "band", "draft"]
    assert all(e.size == "16x16" == "x".join(map(str, opened(e.b64_json).size)) for e in events)
    last = events[-1]
    assert last.b64_json == whole["data"][0]["b64_json"] and last.usage.output_tokens == 64
    # A verified band stands in every later preview, at its place.
    final = pixels(last.b64_json)
    assert np.array_equal(pixels(events[2].b64_json)[:8], pixels(events[1].b64_json)[:8])
    assert not np.array_equal(pixels(events[2].b64_json)[8:], pixels(events[1].b64_json)[8:])
    assert not np.array_equal(pixels(events[0].b64_json), final)
    maps = last.mulosd["maps"]
    assert [len(row) for row in maps["rejected"]] == [8] * 8 == [len(row) for row in maps["resampled"]]
    redrawn = sum(row.count("1") for row in maps["resampled"])
    assert redrawn == round(64 * last.mulosd["stats"]["coverage"]) > 0


@pytest.mark.parametrize(("asked", "partials"), [({}, 0), ({"partial_images": 0}, 0), ({"partial_images": 1}, 1)])
def test_as_many_previews_as_asked_for(server: Any, asked: dict[str, int], partials: int) -> None:
    events = list(client(server).images.generate(prompt="apple", stream=True, **asked))
    assert [e.type.rsplit(".")[-1] for e in events] == ["partial_image"] * partials + ["completed"]


def test_several_images_in_one_stream(server: Any) -> None:
    extra = {"seed": 2, "mulosd": {"partials": "all"}}
    events = list(client(server).images.generate(prompt="pear", stream=True, n=3, extra_body=extra))
    done = {e.image_index: e for e in events if e.type.endswith("completed")}
    assert sorted(done) == [0, 1, 2] and [done[i].mulosd["seed"] for i in range(3)] == [2, 3, 4]
    assert {e.image_index for e in events if e.type.endswith("partial_image")} == {0, 1, 2}
    for i in range(3):
        assert server.post(prompt="pear", seed=2 + i).json()["data"][0]["b64_json"] == done[i].b64_json


def test_the_wire_form_of_events(server: Any) -> None:
    with server.http.stream("POST", "/v1/images/generations", json={"prompt": "apple", "stream": True}) as answer:
        text = answer.read().decode()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-accel-buffering"] == "no"
    event, data, *rest = text.split("\n")
    assert event == "event: image_generation.completed" and rest == ["", ""] and "[DONE]" not in text
    assert json.loads(data.removeprefix("data: "))["type"] == "image_generation.completed"


def test_the_asynchronous_client(server: Any) -> None:
    async def go() -> tuple[Any, list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
            jobs = [api.images.generate(prompt="apple", extra_body={"seed": s}) for s in range(4)]
            found = await asyncio.gather(*jobs)
            stream = await api.images.generate(prompt="apple", stream=True, partial_images=2, extra_body={"seed": 2})
            return found, [event async for event in stream]

    found, events = asyncio.run(go())
    assert len({image.data[0].b64_json for image in found}) == 4
    assert events[-1].b64_json == found[2].data[0].b64_json


def test_the_same_seed_gives_the_same_bytes_under_load(server: Any) -> None:
    alone = {s: server.post(seed=s, n=1).json()["data"][0]["b64_json"] for s in range(6)}

    async def go() -> list[tuple[int, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300) as api:

            async def one(i: int) -> tuple[int, str]:
                seed, kind = i % 6, ("mulo", None, "serial", "zipar:window=2")[i % 4]
                if kind == "serial" or kind == "zipar:window=2":  # company of another kind
                    await api.images.generate(prompt="pear", extra_body={"seed": i, "mulosd": {"decoder": kind}})
                found = await api.images.generate(prompt="apple", extra_body={"seed": seed})
                return seed, found.data[0].b64_json

            return await asyncio.gather(*(one(i) for i in range(24)))

    assert all(text == alone[seed] for seed, text in asyncio.run(go()))


@pytest.mark.parametrize("size", ["auto", None, "4x4", "8x8", "16x16"])
def test_every_size_of_the_family(server: Any, size: str | None) -> None:
    found = client(server).images.generate(prompt="apple", size=size)
    side = 16 if size in ("auto", None) else int(size.split("x")[0])  # type: ignore[union-attr]
    assert found.size == f"{side}x{side}" and opened(found.data[0].b64_json).size == (side, side)


def test_qualities_are_decoders(server: Any) -> None:
    for quality, name in (
        ("low", "draft-only"),
        ("auto", "mulo"),
        ("medium", "mulo"),
        ("high", "jacobi"),
        ("hd", "jacobi"),
    ):
        found = client(server).images.generate(prompt="apple", quality=quality, extra_body={"seed": 1})
        assert found.data[0].mulosd["decoder"].split(":")[0] == name
    high, serial = server.post(quality="high", seed=1).json(), server.post(seed=1, mulosd={"decoder": "serial"}).json()
    assert np.array_equal(pixels(high["data"][0]["b64_json"]), pixels(serial["data"][0]["b64_json"]))


def test_words_that_the_family_does_not_know_are_told(server: Any) -> None:
    told = server.post(prompt="an apple and a zebra").json()["data"][0]["mulosd"]["warnings"]
    assert len(told) == 1 and "'zebra'" in told[0]


BAD: list[tuple[dict[str, Any], int, str | None, str | None]] = [
    ({"prompt": None}, 400, "prompt", "invalid_value"),
    ({"prompt": ""}, 400, "prompt", "invalid_value"),
    ({"prompt": "  "}, 400, None, "invalid_value"),
    ({"prompt": "zebra"}, 400, "prompt", "invalid_value"),
    ({"prompt": "apple " * 1000}, 400, "prompt", "invalid_value"),
    ({"prompt": "\ud800"}, 400, "prompt", "invalid_value"),
    ({"model": "dall-e-3"}, 404, "model", "model_not_found"),
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": 11}, 400, "n", "invalid_value"),
    ({"n": "2"}, 400, "n", "invalid_value"),
    ({"n": True}, 400, "n", "invalid_value"),
    ({"size": "1024x1024"}, 400, "size", "invalid_value"),
    ({"size": "16x8"}, 400, "size", "invalid_value"),
    ({"size": "٤x٤"}, 400, "size", "invalid_value"),
    ({"size": "8x8", "mulosd": {"decoder": "mulo"}}, 400, "size", "invalid_value"),
    ({"quality": "best"}, 400, "quality", "invalid_value"),
    ({"seed": -1}, 400, "seed", "invalid_value"),
    ({"seed": 2**63}, 400, "seed", "invalid_value"),
    ({"seed": 1.5}, 400, "seed", "invalid_value"),
    ({"response_format": "url"}, 400, "response_format", "invalid_value"),
    ({"output_format": "gif"}, 400, "output_format", "invalid_value"),
    ({"output_compression": 50}, 400, None, "invalid_value"),
    ({"background": "transparent"}, 400, None, "invalid_value"),
    ({"partial_images": 4}, 400, "partial_images", "invalid_value"),
    ({"negative_prompt": "blur"}, 400, "negative_prompt", "unknown_parameter"),
    ({"mulosd": {"tau": 1}}, 400, "mulosd.tau", "unknown_parameter"),
    ({"mulosd": {"decoder": "mulo:nope=1"}}, 400, "mulosd.decoder", "invalid_value"),
    ({"mulosd": {"decoder": "nope"}}, 400, "mulosd.decoder", "invalid_value"),
    ({"mulosd": {"decoder": "eagle"}}, 400, "mulosd", "invalid_value"),
    ({"mulosd": {"top_p": 0}}, 400, "mulosd.top_p", "invalid_value"),
    ({"mulosd": {"temperature": -1}}, 400, "mulosd.temperature", "invalid_value"),
    ({"mulosd": {"temperature": 1e-300}}, 400, "mulosd.temperature", "invalid_value"),
    ({"guidance_scale": -1}, 400, "guidance_scale", "invalid_value"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("body", "status", "param", "code"), BAD, ids=[str(b[0])[:40] for b in BAD])
def test_what_cannot_be_is_refused_in_openais_words(
    server: Any, body: dict[str, Any], status: int, param: str | None, code: str, stream: bool
) -> None:
    server.until(lambda: not server.engine.busy)  # a step of the test before may still be under way
    before = server.engine.steps
    # ensure_ascii: a lone surrogate travels as its escape.
    content = json.dumps({"prompt": "apple", "stream": stream, **body})
    answer = server.http.post("/v1/images/generations", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert error["message"] and set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_") and server.engine.steps == before


DECODERS = [
    *(f"zipar:window={n}" for n in (0, 1, 10**11, "nan", "1e3", "")),
    *(f"jacobi:window={n}" for n in (1, 10**9, "true")),
    *(f"mulo:{setting}={n}" for setting in ("draft_guesses", "radius", "window", "pool", "scale") for n in (0, 10**20)),
    *(f"mulo:tau={n}" for n in ("nan", "inf", "-inf", "-0.0", "1e-400")),
    "mulo:entropy_radius=1e308", "mulo:rows_per_cycle=3", "mulo:verify_dtype=int8", "mulo:upsampler=sr", "mulo:pool=65",
    "serial:grid=-1", "mulo:tau=0.1:tau=0.2", "mulo:", ":", "mulo:scale", "MULO", " mulo ", "mulo\x00", "serial:grid=٤",
]  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
def test_no_text_of_a_decoder_is_a_fault_of_the_server(server: Any, decoder: str) -> None:
    answer = server.post(mulosd={"decoder": decoder})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["param"].startswith("mulosd")
    else:
        found = answer.json()
        assert "x".join(map(str, opened(found["data"][0]["b64_json"]).size)) == found["size"]


def test_an_image_as_an_address_needs_a_store(start: Any, tmp_path: Any) -> None:
    live = start(image_store=tmp_path)
    found = client(live).images.generate(prompt="apple", response_format="url", n=2, extra_body={"seed": 4})
    inline = live.post(seed=4, n=2).json()["data"]
    for image, other in zip(found.data, inline, strict=True):
        assert image.b64_json is None and image.url.startswith(f"{live.url}/v1/images/img_")
        answer = live.http.get(image.url)
        assert answer.headers["content-type"] == "image/png" and answer.content == base64.b64decode(other["b64_json"])
    assert len(list(tmp_path.iterdir())) == 2, "nothing half-written beside them"
    (tmp_path / "secret").write_text("no")
    for name in ("secret", "..%2Fsecret", "img_0.png", "%2e%2e", "img_" + "0" * 32 + ".png"):
        assert live.http.get(f"/v1/images/{name}/content").status_code == 404


def test_models(start: Any) -> None:
    live = start(served_names=("gpt-image-1",))
    api = client(live)
    listed = {model.id: model for model in api.models.list()}
    assert sorted(listed) == ["gpt-image-1", "random"]
    facts = api.models.retrieve("gpt-image-1").mulosd
    assert facts["image_sizes"] == ["4x4", "8x8", "16x16"] and facts["scales"] == [2, 4]
    assert "eagle" not in facts["decoders"] and "serial" in facts["decoders"] and "apple" in facts["words"]
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("nope")
    assert caught.value.code == "model_not_found"
    assert api.images.generate(prompt="apple", model="gpt-image-1").data


@pytest.mark.parametrize("path", ["/nope", "/v1/images/edits", "/docs", "/redoc", "/page/index.html", "/../etc/passwd"])
def test_other_addresses_are_404_in_openais_words(server: Any, path: str) -> None:
    answer = server.http.post(path, json={})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"


def test_bodies_that_are_none(server: Any) -> None:
    url, kind = "/v1/images/generations", {"content-type": "application/json"}
    for content, headers, status in (
        (b"{", kind, 400),
        (b"[]", kind, 400),
        (b"", kind, 400),
        (b'"apple"', kind, 400),
        (b'{"prompt": "apple"}', {"content-type": "text/plain"}, 400),
        (b"\xff\xfe", kind, 400),
        (b'{"prompt": "%s"}' % (b"a" * 70_000), kind, 413),
    ):
        answer = server.http.post(url, content=content, headers=headers)
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error", answer.text

    def parts() -> Any:  # without a length before
        yield b'{"prompt": "'
        for _ in range(80):
            yield b"a" * 1000
        yield b'"}'

    answer = server.http.post(url, content=parts(), headers=kind)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_no_answer_tells_of_the_file_system(start: Any, told: Any, folder: Any) -> None:
    engine = told()
    engine.family.path = folder
    live = start(engine)
    for answer in (
        live.http.get("/v1/models"),
        live.http.get("/version"),
        live.http.get("/openapi.json"),
        live.http.get("/metrics"),
        live.post(),
        live.post(size="9x9"),
        *(live.post(mulosd={"decoder": f"{name}:upsampler={folder}/{file}"})
          for name in ("mulo", "draft-only") for file in ("ar.safetensors", "none.safetensors")),
    ):  # fmt: skip
        for text in (answer.text, str(answer.headers)):
            assert str(folder) not in text and "/root" not in text and "site-packages" not in text
    there, missing = (
        live.post(mulosd={"decoder": f"mulo:upsampler={folder}/{file}"}).json()["error"]["message"]
        for file in ("ar.safetensors", "none.safetensors")
    )
    assert there == missing, "nor whether a file exists"
