"""Steps of fixed shapes against the forward that they stand in for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mulosd.engine.batch import Feed
from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.decoding import Decoder, Jacobi, MuloSD, Serial, ZipAR
from mulosd.engine.engine import Engine
from mulosd.engine.graph_key import DRAWINGS, FREE, Key, bucket, can_serve, key_of, parts
from mulosd.engine.random_family import random_family
from mulosd.engine.runner import run
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import SchedulerConfig

from .conftest import PROMPTS
from .test_runner import Case, close

DECODERS: list[Decoder] = [
    Serial(),
    ZipAR(window=3),
    Jacobi(),
    MuloSD(tau=0.05, radius=1, pool=3),
    MuloSD(2, tau=0.2, radius=1, pool=3, window=2, draft_window=2),
    MuloSD(2, tau=0.05, radius=1, pool=3, rows_per_cycle=2),
]

TINY = random_family()


@pytest.fixture(scope="module")
def fixed() -> Engine:
    """The tiny family on steps of fixed shapes."""
    return Engine(random_family(), config=SchedulerConfig(static=True))


def test_buckets_are_the_powers_of_two() -> None:
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 63, 64, 65)] == [1, 2, 4, 4, 8, 64, 64, 128]


@torch.inference_mode()
@pytest.mark.parametrize("positions", [[0], [5, 6, 7], [9, 2, 30, 11, 4], list(range(64))])
def test_logits_and_cache_are_those_of_the_forward(engine: Engine, positions: list[int]) -> None:
    """Three lanes, one unguided, one in other columns, and one that sits out: its row stays as it is."""
    cases = [Case(engine, guided=(True, False, True)) for _ in range(2)]
    results = []
    for case, static in zip(cases, (False, True), strict=True):
        for i in range(3):
            run([case.feed(i, range(40))], static=False)
        case.lanes[0].hide([1, 3])
        results.append(run([case.feed(0, positions), case.feed(1, positions[::-1], logits="last")], static=static))
    assert len(cases[1].cache.steps) == 1
    for plain, fixed in zip(*results, strict=True):
        assert plain.logits is not None and fixed.logits is not None
        assert close(fixed.logits.cond, plain.logits.cond)
        assert (fixed.logits.uncond is None) == (plain.logits.uncond is None)
        if plain.logits.uncond is not None and fixed.logits.uncond is not None:
            assert close(fixed.logits.uncond, plain.logits.uncond)
    for plain, fixed in zip(cases[0].cache.k + cases[0].cache.v, cases[1].cache.k + cases[1].cache.v, strict=True):
        assert close(fixed, plain)


@torch.inference_mode()
def test_a_step_forgets_the_lanes_that_it_served(engine: Engine) -> None:
    """A new lane in the rows of an old one is given its own condition, not the old one's."""
    case = Case(engine)
    run([case.feed(0, [0])], static=True)
    case.lanes[0].close()
    other = Case(engine, guided=(True, True, True))
    lane = Lane(case.cache, other.lanes[1].features)
    assert lane.first_row == 0
    [static] = run([Feed(lane, other.tokens[1][:1], range(1))], static=True)
    [plain] = run([Feed(lane, other.tokens[1][:1], range(1))], static=False)
    assert static.logits is not None and plain.logits is not None
    assert close(static.logits.cond, plain.logits.cond)


def test_which_feeds_share_a_step(engine: Engine) -> None:
    """Short ones of one cache do; a verification and feeds of other caches are apart."""
    case, other = Case(engine), Case(engine)
    feeds = [
        case.feed(0, [1]),
        case.feed(1, range(40)),
        other.feed(0, [1]),
        case.feed(2, [1, 2]),
        Feed(case.lanes[1], None),
    ]
    found = parts(feeds, [i for i, feed in enumerate(feeds) if can_serve(feed)])
    assert sorted(found) == [[0, 3], [1], [2]]


def test_a_step_is_as_large_as_its_feeds_need(engine: Engine) -> None:
    """The rows that are fed, wherever they lie, the tokens of the longest feed, all keys of a small cache."""
    case = Case(engine)
    assert len(case.cache.used) == 8
    assert key_of([case.feed(0, [1, 2, 3]), case.feed(1, [4, 5, 6, 7])]) == Key(4, 4, 68, False, True, None)
    assert key_of([case.feed(0, [1], logits="none")]) == Key(2, 1, 68, False, False, None)
    case.lanes[2].hide([9])
    assert key_of([case.feed(2, [1, 2])]) == Key(2, 2, 68, True, True, None)
    assert key_of([case.feed(i, range(60)) for i in range(3)])[:2] == (8, 64)


@torch.inference_mode()
def test_the_rows_of_a_step_are_those_that_are_fed(engine: Engine) -> None:
    """Alone in the last rows of a cache a request computes its own rows, and all other keys stay as they were."""
    case = Case(engine, guided=(True, False, True))
    assert [lane.first_row for lane in case.lanes] == [0, 2, 4] and len(case.cache.used) == 8
    for i in range(3):
        run([case.feed(i, range(40))], static=True)
    layers = (*case.cache.k, *case.cache.v)
    for i, rows in ((1, 1), (2, 2)):
        before = [t.clone() for t in layers]
        run([case.feed(i, [41])], static=True)
        assert [key.rows for key in case.cache.steps][-1] == rows
        lane = case.lanes[i]
        for old, new in zip(before, layers, strict=True):
            changed = (old != new).flatten(2).any(-1).nonzero().tolist()
            assert changed == [[lane.first_row + b, lane.cond_len + 41] for b in range(rows)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(counts=st.lists(st.integers(1, 64), min_size=1, max_size=8), branches=st.integers(1, 2))
def test_padding_is_free_or_at_most_half_of_a_step(counts: list[int], branches: int) -> None:
    cache = KVCache(TINY.ar, 8, branches * 8)
    feeds = []
    for count in counts:
        lane = Lane(cache, TINY.null_features(branches))
        feeds.append(Feed(lane, torch.zeros(count, dtype=torch.int64), range(count)))
    found = parts(feeds, range(len(feeds)))
    assert sorted(i for part in found for i in part) == list(range(len(feeds)))
    for part in found:
        key = key_of([feeds[i] for i in part])
        needed = sum(branches * counts[i] for i in part)
        assert needed <= key.rows * key.width <= max(FREE, 2 * needed)
        assert key.width >= max(counts[i] for i in part) and key.rows >= branches * len(part)
        assert key.width <= 16 or len({bucket(counts[i]) for i in part}) == 1


def test_keys_come_in_a_few_buckets(engine: Engine) -> None:
    """A cache of many slots has no more graphs than one of 2,048."""
    cache = KVCache(random_family(grids=(64,)).ar, 64, 2)
    lane = Lane(cache, engine.family.features(["red"]))
    tokens = torch.zeros(1, dtype=torch.int64)
    found = [key_of([Feed(lane, tokens, range(at, at + 1))]) for at in range(64 * 64)]
    widths = {key.keys for key in found}
    assert len(widths) <= 8 and max(widths) == cache.slots
    assert all(at + 1 + lane.cond_len <= key.keys for at, key in enumerate(found))


def test_ways_to_sample_are_captured_up_to_a_number(engine: Engine) -> None:
    """Requests that each ask for another temperature fill no memory with graphs, and draw what they draw alone."""
    ways = [SamplingParams(cfg_scale=2.0, temperature=0.5 + 0.1 * i) for i in range(7)]
    many = Engine(random_family(), config=SchedulerConfig(static=True))
    for way in ways:
        expected = engine.generate("apple", decoder=Serial(), sampling=way).tokens
        assert torch.equal(many.generate("apple", decoder=Serial(), sampling=way).tokens, expected)
    drawings = [key.drawing for key in many.caches[8, False].steps]
    assert len(drawings) == DRAWINGS + 1 and len(set(drawings)) == DRAWINGS + 1 and None in drawings


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: d.name)
def test_every_decoder_draws_the_same_tokens(
    engine: Engine, fixed: Engine, decoder: Decoder, sampling: SamplingParams
) -> None:
    def tokens(of: Engine, prompts: Sequence[str]) -> torch.Tensor:
        return of.generate(prompts, decoder=decoder, sampling=sampling, seed=3).tokens

    assert torch.equal(tokens(fixed, PROMPTS), tokens(engine, PROMPTS))
    assert fixed.caches[8, False].steps


def test_requests_of_all_decoders_in_flight(engine: Engine) -> None:
    """They join and leave, the caches grow, and each still draws what it draws alone."""
    mixed = Engine(random_family(), config=SchedulerConfig(static=True))
    numbers, updates = {}, []
    for i, decoder in enumerate(DECODERS):
        numbers[mixed.add_request(PROMPTS[i % 3], decoder=decoder, seed=i)] = i
        for _ in range(5):
            updates += mixed.step()
    while mixed.busy:
        updates += mixed.step()
    done = {u.request: u.tokens for u in updates if u.kind == "final"}
    for number, i in numbers.items():
        alone = engine.generate(PROMPTS[i % 3], decoder=DECODERS[i], seed=i).tokens
        tokens = done[number]
        assert tokens is not None and torch.equal(tokens.view_as(alone), alone), DECODERS[i]


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: d.name)
def test_graphs_draw_the_tokens_of_eager_steps(decoder: Decoder) -> None:
    eager = Engine(random_family(), device="cuda", dtype="float32", config=SchedulerConfig(static=False))
    graphs = Engine(random_family(), device="cuda", dtype="float32")
    for seed in range(2):  # the second image replays what the first captured
        expected = eager.generate(PROMPTS, decoder=decoder, seed=seed).tokens
        assert torch.equal(graphs.generate(PROMPTS, decoder=decoder, seed=seed).tokens, expected)
    assert all(step.graph is not None for step in graphs.caches[8, False].steps.values())
