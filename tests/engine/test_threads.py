"""One engine for many threads, event loops and kinds of arguments; what is damaged is said, never drawn."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mulosd.engine.async_engine import AsyncEngine, EngineBusy
from mulosd.engine.cache import KVCache
from mulosd.engine.decoding import DraftOnly, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.engine.request import Update
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import SchedulerConfig

SAMPLING = SamplingParams(cfg_scale=2.0)
FAST: dict[str, Any] = {"decoder": DraftOnly(2, "latent"), "sampling": SAMPLING}


@pytest.fixture
def engine() -> Engine:
    return Engine(random_family())


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What each job returns, all begun at once, each in a thread of its own."""
    gate, results = threading.Barrier(len(jobs)), [None] * len(jobs)

    def work(i: int) -> None:
        gate.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_draw_on_a_fresh_engine_what_each_would_alone() -> None:
    reference = Engine(random_family())
    wanted = [reference.generate("red apple", seed=s, **FAST).tokens for s in range(6)]
    for _ in range(5):
        engine = Engine(random_family())
        found = in_threads([lambda s=s, e=engine: e.generate("red apple", seed=s, **FAST) for s in range(6)])
        assert [type(r).__name__ for r in found] == ["GenerationResult"] * 6
        assert all(torch.equal(r.tokens, w) for r, w in zip(found, wanted, strict=True))
        assert not engine.busy and not engine.scheduler.running
        # Nothing that was computed in a race is kept.
        assert torch.equal(engine.generate("red apple", seed=0, **FAST).tokens, wanted[0])


def test_streams_steps_and_aborts_of_other_threads_change_no_image(engine: Engine) -> None:
    wanted = Engine(random_family()).generate("blue pear", seed=4, decoder=Serial(), sampling=SAMPLING).tokens
    added = engine.add_request("apple", seed=1, **FAST)
    dropped = engine.add_request("pear", seed=2, **FAST)

    def streamed() -> Any:
        return list(engine.stream("red", seed=3, **FAST))[-1].kind

    found = in_threads(
        [
            lambda: engine.generate("blue pear", seed=4, decoder=Serial(), sampling=SAMPLING).tokens,
            streamed,
            lambda: engine.abort(dropped),
        ]
    )
    assert torch.equal(found[0], wanted) and found[1] == "final"
    updates = []
    while engine.busy:
        updates += engine.step()
    assert {u.request for u in updates} <= {added, dropped} and added in {u.request for u in updates}


def test_an_engine_that_was_used_is_refused_behind_a_fork(engine: Engine) -> None:
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def child() -> None:
        try:
            engine.generate("apple", **FAST)
            results.put("drew")
        except RuntimeError as error:
            results.put(str(error))

    for expected in ("drew", "spawn"):
        process = context.Process(target=child)
        process.start()
        answer = results.get(timeout=120)
        process.join()
        assert expected in answer
        engine.generate("apple", **FAST)


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), torch.tensor(5), np.array(5), [5], np.array([5])])
def test_numbers_of_numpy_and_torch_are_numbers(engine: Engine, seed: Any) -> None:
    wanted = engine.generate("apple", seed=5, **FAST)
    found = engine.generate("apple", seed=seed, num_images=np.int64(1), batch_size=torch.tensor(2), **FAST)
    assert torch.equal(found.tokens, wanted.tokens) and found.seeds == [5] and type(found.seeds[0]) is int


@pytest.mark.parametrize("seed", [5.0, [5.9], "5", None, True, -1, 2**63, [1, 2], float("nan"), torch.tensor(5.5)])
def test_what_is_no_seed_is_refused(engine: Engine, seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        engine.generate("apple", seed=seed, **FAST)


@pytest.mark.parametrize("name", ["num_images", "batch_size"])
@pytest.mark.parametrize("value", [0, float("nan"), 1.5, "2", None, True])
def test_what_is_no_count_is_refused(engine: Engine, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
        engine.generate("apple", **FAST, **{name: value})


@pytest.mark.parametrize("prompts", [b"an apple", 5, [b"x"], [None], []])
def test_what_is_no_prompt_is_refused(engine: Engine, prompts: Any) -> None:
    with pytest.raises(ValueError, match="prompt"):
        engine.generate(prompts, **FAST)


def test_results_are_ordinary_tensors(engine: Engine) -> None:
    result = engine.generate("apple", decoder="mulo:scale=2:tau=0.05:radius=1:pool=1", sampling=SAMPLING)
    assert not result.tokens.is_inference()
    result.tokens[0, 0, 0] = 5
    logits = torch.randn(64, 24, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, result.tokens.flatten()).backward()
    assert result.resampled is not None
    result.resampled.logical_not_()


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = random_family().save(tmp_path / "family")
    for part, key in (("tokenizer", "decoder"), ("ar", "output"), ("text", "norm"), ("resamplers", "")):
        file = folder / f"{part}.safetensors"
        whole = load_file(file)
        name = next(k for k, v in whole.items() if k.startswith(key) and v.is_floating_point())
        save_file({**whole, name: torch.full_like(whole[name], float("nan"))}, file)
        with pytest.raises(ValueError, match=f"{part}.safetensors .*NaN or infinity in {name}"):
            Family.load(folder)
        save_file(whole, file)
    Family.load(folder)


def test_a_tokenizer_that_gives_nan_is_an_error_and_no_black_image(engine: Engine) -> None:
    for parameter in engine.family.tokenizer.parameters():  # type: ignore[attr-defined]
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="image tokenizer of family 'random' gives NaN"):
        engine.generate("apple", **FAST)


def test_memory_that_runs_out_while_a_cache_grows_leaves_it_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = KVCache(engine.family.ar, 8, 2)
    first = cache.take(2)
    kept = [layer.clone() for layer in cache.k]
    zeros, calls = torch.zeros, iter(range(100))

    def scarce(*args: Any, **options: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("out of memory, on purpose")
        return zeros(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", scarce)
        with pytest.raises(torch.OutOfMemoryError):
            cache.take(2)
    assert len(cache.used) == 2 and all(torch.equal(a, b) for a, b in zip(cache.k, kept, strict=True))
    cache.release(first, 2)
    assert cache.take(2) == first


def test_aborting_from_the_back_is_not_quadratic(engine: Engine) -> None:
    """A queue of 3,000: found by number, not by walking."""
    condition = engine.family.features(["apple"])
    numbers = []
    for seed in range(3000):
        numbers.append(engine.add_request("apple", seed=seed, **FAST))
    assert len(engine.scheduler.waiting) == 3000 and condition is not None
    walked = 0

    class Counted(dict):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            nonlocal walked
            walked += 1
            return super().__iter__()

    engine.scheduler.waiting = Counted(engine.scheduler.waiting)
    assert all(engine.abort(n) for n in reversed(numbers))
    assert walked == 0 and not engine.busy


def slow_down(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a serial image of 64 tokens take more than a second on any machine."""
    step = engine.step

    def slow() -> list[Update]:
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(engine, "step", slow)


def test_closing_fails_what_waits_and_may_be_repeated(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(engine, monkeypatch)

    async def go() -> None:
        server = AsyncEngine(engine)
        waiting = [asyncio.create_task(server.generate("apple", seed=s, decoder=Serial())) for s in range(3)]
        await asyncio.sleep(0.05)
        await server.close()
        await server.close()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        assert all(isinstance(error, RuntimeError) and "closed" in str(error) for error in found)
        with pytest.raises(RuntimeError, match="closed"):
            await server.generate("apple")

    asyncio.run(go())
    assert not engine.scheduler.running and not engine.scheduler.waiting


def test_a_request_cancelled_at_any_point_leaves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(engine, monkeypatch)

    async def go() -> None:
        server = AsyncEngine(engine)
        for pause in (0, 0, 0.001, 0.002, 0.005, 0.02, 0.05):
            task = asyncio.create_task(server.generate("apple", decoder=Serial()))
            await asyncio.sleep(pause)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await server.generate("pear", **FAST)  # the thread takes them in order: all is done behind it
        assert not server._queues and not server._count
        await server.close()

    asyncio.run(go())
    assert not engine.scheduler.running and not engine.scheduler.waiting and not engine._requests


def test_one_more_than_may_wait_is_refused(engine: Engine) -> None:
    async def go() -> None:
        server = AsyncEngine(engine, max_waiting=2)
        tasks = [asyncio.create_task(server.generate("apple", seed=s, **FAST)) for s in range(3)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(f).__name__ for f in found] == ["Update", "Update", "EngineBusy"]
        with pytest.raises(ValueError, match="max_waiting"):
            AsyncEngine(engine, max_waiting=0)
        assert issubclass(EngineBusy, RuntimeError)
        await server.close()

    asyncio.run(go())


def test_two_event_loops_at_once_are_refused_and_one_after_the_other_is_right(engine: Engine) -> None:
    server = AsyncEngine(engine)
    wanted = engine.generate("apple", seed=7, **FAST).tokens[0]
    for _ in range(2):
        update = asyncio.run(server.generate("apple", seed=7, **FAST))
        assert update.tokens is not None and torch.equal(update.tokens, wanted)

    async def other() -> None:
        await server.generate("apple", **FAST)

    async def go() -> None:
        task = asyncio.create_task(server.generate("apple", decoder=Serial()))
        await asyncio.sleep(0.02)
        [error] = await asyncio.to_thread(in_threads, [lambda: asyncio.run(other())])
        assert isinstance(error, RuntimeError) and "another event loop" in str(error)
        assert (await task).kind == "final"
        await server.close()

    asyncio.run(go())


def test_limits_take_whole_numbers_alone() -> None:
    for value in (float("nan"), 1.5, 0, "8"):
        with pytest.raises(ValueError, match="max_running must be a whole number"):
            SchedulerConfig(max_running=value)  # type: ignore[arg-type]
