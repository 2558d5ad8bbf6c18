"""The pipeline draws what the engine draws, and is called as a pipeline of diffusers is."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mulosd
from mulosd import MulosdPipeline

PROMPTS = ["red apple", "a blue pear"]


@pytest.fixture(scope="module")
def pipe(family: Path) -> MulosdPipeline:
    torch.set_num_threads(1)
    return MulosdPipeline.from_pretrained(family, torch_dtype=torch.float32)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("decoder", [None, "serial", "mulo:scale=2:rows_per_cycle=2", "zipar:window=2", "jacobi"])
def test_images_are_those_of_the_engine(pipe: MulosdPipeline, decoder: str | None) -> None:
    out = pipe(PROMPTS, num_images_per_prompt=2, generator=seeded(5), guidance_scale=2.5, decoder=decoder)
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert len(set(out.seeds)) == 4 and out.finished == [True] * 4
    told = pipe.engine.generate(prompts, seed=out.seeds, decoder=decoder, sampling={"cfg_scale": 2.5})
    assert pixels(out.images) == pixels(told.images) and len(set(pixels(told.images))) == 4
    latent = pipe(PROMPTS, num_images_per_prompt=2, generator=seeded(5), guidance_scale=2.5, decoder=decoder,
                  output_type="latent", return_dict=False)  # fmt: skip
    assert isinstance(latent, tuple) and torch.equal(latent[0], told.tokens)
    assert [s.seed for s in out.stats if s is not None] == out.seeds
    assert pipe.guidance_scale == 2.5


def test_seeds_come_from_generators_as_documented(pipe: MulosdPipeline) -> None:
    generator = seeded(11)
    first, second = (pipe("apple", num_images_per_prompt=2, generator=generator) for _ in range(2))
    told = seeded(11)
    assert first.seeds + second.seeds == [int(torch.randint(0, 2**53, (), generator=told)) for _ in range(4)]
    assert torch.equal(generator.get_state(), told.get_state())
    each = pipe(PROMPTS, generator=[seeded(11), seeded(12)])
    assert each.seeds == [first.seeds[0], pipe("apple", generator=seeded(12)).seeds[0]]
    assert pipe("apple", generator=seeded(11)).images[0].tobytes() == first.images[0].tobytes()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        assert pipe("apple", num_images_per_prompt=2).seeds == first.seeds
        assert pipe("apple").seeds != first.seeds[:1]


def test_seeds_may_be_those_of_the_engine(pipe: MulosdPipeline) -> None:
    out = pipe(PROMPTS, seed=[3, 8], num_images_per_prompt=2)
    assert out.seeds == [3, 4, 8, 9]
    told = pipe.engine.generate(PROMPTS, seed=[3, 8], num_images=2)
    assert pixels(out.images) == pixels(told.images) and told.seeds == out.seeds


def test_forms_of_output_hold_the_same(pipe: MulosdPipeline) -> None:
    made = {kind: pipe(PROMPTS, generator=seeded(1), output_type=kind) for kind in ("pil", "np", "pt")}
    array, tensor = made["np"].images, made["pt"].images
    assert array.shape == (2, 16, 16, 3) and array.dtype == np.float32 and 0 <= array.min() < array.max() <= 1
    assert tensor.shape == (2, 3, 16, 16) and tensor.dtype == torch.float32
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert [(a * 255).round().astype(np.uint8).tobytes() for a in array] == pixels(made["pil"].images)
    out = made["pil"]
    assert out[0] is out.images is out["images"] is out.to_tuple()[0] and out[:2] == (out.images, out.seeds)
    assert out.keys() == ["images", "seeds", "stats", "finished", "warnings"]
    with pytest.raises(KeyError, match="images"):
        out["nsfw_content_detected"]


def test_sizes(pipe: MulosdPipeline) -> None:
    small = pipe("apple", height=8, width=8, generator=seeded(2))
    assert small.images[0].size == (8, 8) and small.stats[0].decoder == "jacobi"
    told = pipe.engine.generate("apple", seed=small.seeds[0], decoder="serial:grid=4")
    assert pixels(small.images) == pixels(told.images)
    assert pipe("apple", width=16, generator=seeded(2)).stats[0].decoder == "mulo"
    assert pipe("apple", height=8, decoder="serial").images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"height": 8, "width": 16}, "square.* 4x4, 8x8, 16x16"),
        ({"height": 9}, "9.*4, 8, 16 px"),
        ({"height": 8, "decoder": "mulo"}, "draws 16 px alone"),
        ({"height": 8.0}, "height must be a whole number"),
        ({"negative_prompt": "blurry"}, "no negative prompts here"),
        ({"negative_prompt": ["", "blurry"]}, "no negative prompts here"),
        ({"generator": 7}, "torch.Generator"),
        ({"generator": [7]}, "torch.Generator"),
        ({"generator": []}, "torch.Generator"),
        ({"generator": [torch.Generator()] * 2}, "1 images .* need 1 generators, got 2"),
        ({"generator": torch.Generator(), "seed": 1}, "one of them"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"output_type": "tensor"}, "pil, np, pt, latent"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "images, latents, updated"),
        ({"guidance_scale": -1}, "cfg_scale must be 0 or more"),
        ({"decoder": "fast"}, "decoders must be chosen from"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(pipe: MulosdPipeline, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pipe("apple", **options)
    assert not pipe.engine.busy


def test_negative_prompts_are_refused_in_the_words_of_the_command_line(pipe: MulosdPipeline, run: Any) -> None:
    refused = run("generate", "apple", "--negative-prompt", "blurry").stderr
    with pytest.raises(ValueError, match="negative_prompt") as error:
        pipe("apple", negative_prompt="blurry")
    assert str(error.value).partition(": ")[2].partition(" (")[0] in refused
    assert pipe("apple", negative_prompt=["", " "]).finished == [True]


def test_inference_steps_are_ignored_with_one_warning(family: Path) -> None:
    pipe = MulosdPipeline.from_pretrained(family)
    with pytest.warns(UserWarning, match="num_inference_steps is ignored") as caught:
        pipe("apple", num_inference_steps=50)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("apple", num_inference_steps=50)


def test_callbacks_see_the_images_come(pipe: MulosdPipeline) -> None:
    calls: list[tuple[int, int, dict[str, Any]]] = []

    def note(asked: MulosdPipeline, step: int, timestep: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        assert asked is pipe and asked.num_timesteps == step + 1
        calls.append((step, timestep, kwargs))
        return kwargs

    decoder = "mulo:scale=2:rows_per_cycle=2"
    out = pipe(PROMPTS, generator=seeded(4), decoder=decoder, callback_on_step_end=note)
    assert [step for step, *_ in calls] == list(range(pipe.num_timesteps))
    left = [timestep for _, timestep, _ in calls]
    assert left == sorted(left, reverse=True) and (left[0], left[-1]) == (2, 0)
    assert calls[0][2]["images"] == [None, None] and calls[0][2]["updated"] == []
    news = [kwargs for _, _, kwargs in calls if 0 in kwargs["updated"]]
    assert len(news) >= 4, "a draft, bands, and the image"
    assert all(kwargs["images"][0].size == (16, 16) for kwargs in news)
    assert news[-1]["images"][0].tobytes() == out.images[0].tobytes()
    final = news[-1]["latents"][0]
    for kwargs in news:
        known = kwargs["latents"][0]
        rows = (known >= 0).all(1)
        assert bool(((known >= 0).any(1) == rows).all()), "whole rows"
        assert torch.equal(known[rows], final[rows]), "what is verified stays"
    counts = [int((kwargs["latents"][0] >= 0).sum()) for kwargs in news]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == final.numel() and len(set(counts)) > 2
    # Looking on changes nothing.
    assert pixels(out.images) == pixels(pipe(PROMPTS, generator=seeded(4), decoder=decoder).images)

    chosen: list[list[str]] = []
    pipe("apple", callback_on_step_end=lambda p, s, t, k: chosen.append(list(k)),
         callback_on_step_end_tensor_inputs=["latents"])  # fmt: skip
    assert chosen and all(names == ["latents"] for names in chosen)


def test_interrupt_gives_what_there_is(pipe: MulosdPipeline) -> None:
    whole = pipe(PROMPTS, generator=seeded(6), decoder="mulo:scale=2:rows_per_cycle=2")

    def stop_at(when: Any) -> Any:
        def callback(asked: MulosdPipeline, step: int, timestep: int, kwargs: dict[str, Any]) -> None:
            if when(step, timestep, kwargs):
                asked._interrupt = True

        return {"generator": seeded(6), "decoder": "mulo:scale=2:rows_per_cycle=2", "callback_on_step_end": callback}

    first = pipe(PROMPTS, batch_size=1, **stop_at(lambda step, left, kwargs: left == 1))
    assert first.finished == [True, False] and first.stats[1] is None and pipe.interrupt
    assert first.images[0].tobytes() == whole.images[0].tobytes()
    assert first.images[1].getcolors() == [(256, (128, 128, 128))], "nothing was known of it"
    assert not pipe.engine.busy

    seen: list[Any] = []
    half = pipe(PROMPTS, **stop_at(lambda step, left, kwargs: kwargs["updated"] and not seen.append(kwargs)))
    assert half.finished == [False, False] and half.seeds == whole.seeds
    number = seen[0]["updated"][0]
    assert half.images[number].tobytes() == seen[0]["images"][number].tobytes() != whole.images[number].tobytes()
    tokens = pipe("apple", output_type="latent", **stop_at(lambda *_: True)).images
    assert tokens.shape == (1, 8, 8) and bool((tokens == -1).all()) and pipe.num_timesteps == 1
    # The next call knows nothing of it.
    assert pixels(pipe(PROMPTS, generator=seeded(6), decoder="mulo:scale=2:rows_per_cycle=2").images) == pixels(
        whole.images
    )


def test_a_callback_that_raises_leaves_nothing_behind(pipe: MulosdPipeline) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("of the callback")

    with pytest.raises(ZeroDivisionError, match="of the callback") as kept:
        pipe(PROMPTS, callback_on_step_end=fail)
    load = pipe.engine.load()
    assert kept.value.__traceback__ is not None, "the frames of the call are still there"
    assert (load.waiting, load.running, load.kv_bytes) == (0, 0, 0) and not pipe.engine.busy


def test_pipelines_of_threads_share_an_engine(pipe: MulosdPipeline) -> None:
    """Each gets its own images, and a request that was added keeps its updates."""
    number = pipe.engine.add_request("red pear", seed=9, decoder="serial")
    made: dict[int, Any] = {}

    def draw(seed: int) -> None:
        made[seed] = MulosdPipeline(pipe.engine)(PROMPTS, generator=seeded(seed), callback_on_step_end=lambda *_: None)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed, out in made.items():
        assert pixels(out.images) == pixels(pipe(PROMPTS, generator=seeded(seed)).images)
    assert len(made) == 3
    updates = []
    while pipe.engine.busy:
        updates += pipe.engine.step()
    assert [(u.request, u.kind) for u in updates] == [(number, "final")]


def test_to_and_from_pretrained(family: Path) -> None:
    pipe = MulosdPipeline.from_pretrained(str(family), dtype="float32", device_map="cpu", use_safetensors=True)
    engine = pipe.engine
    assert pipe.to("cpu") is pipe and pipe.engine is engine, "nothing to do"
    assert pipe.to(torch.bfloat16).dtype == torch.bfloat16 and pipe.device == torch.device("cpu")
    assert pipe.engine is not engine and pipe.engine.family.models[0].dtype == torch.bfloat16
    assert pipe("apple").finished == [True]
    assert pipe.to("cpu", torch.float32).dtype == torch.float32
    for moved in ({"device": "tpu"}, {"device": "meta"}):
        with pytest.raises(ValueError, match="'cuda:0'"):
            pipe.to(**moved)
    with pytest.raises(ValueError, match="one device"):
        pipe.to("cpu", device="cpu")
    with pytest.raises(ValueError, match="one dtype"):
        pipe.to(torch.float32, torch.float16)
    pipe.engine.add_request("apple")
    with pytest.raises(ValueError, match="under way"):
        pipe.to(torch.bfloat16)
    pipe.engine.clear()
    assert MulosdPipeline.from_pretrained(family, torch_dtype=torch.float16).dtype == torch.float16
    for wrong, told in (
        ({"torch_dtype": torch.float16, "dtype": torch.float16}, "one of them"),
        ({"device": "cpu", "device_map": "cpu"}, "one of them"),
        ({"use_safetensors": False}, "safetensors"),
        ({"dtype": torch.int8}, "float32, bfloat16, float16"),
    ):
        with pytest.raises(ValueError, match=told):
            MulosdPipeline.from_pretrained(family, **wrong)
    with pytest.raises(ValueError, match="emoji"):
        MulosdPipeline.from_pretrained("stabilityai/sdxl")
    with pytest.raises(ValueError, match="engine must be an Engine"):
        MulosdPipeline(family)  # type: ignore[arg-type]


def test_words_that_are_not_known_are_told(pipe: MulosdPipeline) -> None:
    assert "zebra" in " ".join(pipe("a zebra and an apple").warnings)
    with pytest.raises(ValueError, match="empty"):
        pipe("")
    assert mulosd.PipelineOutput.__name__ in mulosd.__all__
