"""The forward primitive against the definition, `Transformer.forward`."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pytest
import torch
from torch import Tensor

from mulosd.engine.batch import Draw, Feed, Result, Tree
from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.engine import Engine
from mulosd.engine.request import prefix
from mulosd.engine.runner import run
from mulosd.engine.sampling import Logits, Noise, Purpose, SamplingParams
from mulosd.kernels import masks

PROMPTS = ["apple", "blue pear", "red"]


def drive(plan: Generator[list[Feed], list[Result], Logits]) -> Logits:
    """Run a plan alone."""
    results: list[Result] | None = None
    while True:
        try:
            results = run(next(plan) if results is None else plan.send(results))
        except StopIteration as stop:
            return stop.value


class Case:
    """Lanes of three prompts on one grid, random tokens, and the teacher-forced logits of both branches."""

    def __init__(self, engine: Engine, grid: int = 8, guided: Sequence[bool] = (True, True, True)) -> None:
        family = engine.family
        null = family.null_features(1)
        self.cache = KVCache(family.ar, grid)
        self.tokens = torch.randint(24, (3, grid * grid), generator=torch.Generator().manual_seed(1))
        self.lanes, self.first, self.cond = [], [], []
        for prompt, both, tokens in zip(PROMPTS, guided, self.tokens, strict=True):
            features = family.features([prompt])
            self.lanes.append(Lane(self.cache, torch.cat([features, null]) if both else features))
            self.first.append(drive(prefix(self.lanes[-1])))
            self.cond.append(family.ar(features, tokens[None], grid)[0])
        self.uncond = family.ar(null.expand(3, -1, -1), self.tokens, grid)

    def feed(self, i: int, positions: Sequence[int], **options: object) -> Feed:
        return Feed(self.lanes[i], self.tokens[i][torch.tensor(positions)], positions, **options)  # type: ignore[arg-type]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [63, 1, 7])
def test_one_pass_steps_and_chunks_equal_the_teacher_forced_logits(engine: Engine, chunk: int) -> None:
    case = Case(engine)
    for i in range(3):
        assert close(case.first[i].cond[0], case.cond[i][0])
    for start in range(0, 63, chunk):
        positions = range(start, min(63, start + chunk))
        for i, result in enumerate(run([case.feed(i, positions) for i in range(3)])):
            assert result.logits is not None and result.logits.uncond is not None
            after = slice(start + 1, positions.stop + 1)
            assert close(result.logits.cond, case.cond[i][after])
            assert close(result.logits.uncond, case.uncond[i][after])


@torch.inference_mode()
def test_feeds_of_any_shape_share_a_forward(engine: Engine) -> None:
    """Requests at different phases, guided and not, on two grids, in one call."""
    case, other = Case(engine, guided=(True, False, True)), Case(engine, grid=4)
    run([case.feed(0, range(63)), case.feed(1, range(40)), case.feed(2, range(20)), other.feed(0, range(9))])
    feeds = [
        case.feed(0, [5, 20, 40]),
        case.feed(1, range(40, 41)),
        other.feed(0, range(9, 15), logits="last"),
        case.feed(2, [3, 19], logits=[1]),
        other.feed(1, range(15), logits="none"),
    ]
    results = run(feeds)
    expected = [case.cond[0][[6, 21, 41]], case.cond[1][41:42], other.cond[0][15:16], case.cond[2][20:21]]
    for result, wanted in zip(results, expected, strict=False):
        assert result.logits is not None and close(result.logits.cond, wanted)
    assert results[1].logits is not None and results[1].logits.uncond is None
    assert results[3].logits is not None and results[3].logits.uncond is not None
    assert close(results[3].logits.uncond, case.uncond[2][20:21])
    assert results[4].logits is None
    [after] = run([other.feed(1, range(14, 15))])
    assert after.logits is not None and close(after.logits.cond, other.cond[1][15:16])


@torch.inference_mode()
@pytest.mark.parametrize("starts", [(9, 9, 9), (9, 30, 9)], ids=["one start", "several starts"])
def test_a_tree_gives_the_teacher_forced_logits_of_each_path(engine: Engine, starts: tuple[int, ...]) -> None:
    """Trees of 12 nodes, in the slots behind their roots, beside a plain feed; then the KV of a path is moved."""
    parents = torch.tensor([-1, 0, 0, 1, 1, 2, 5, 3, 0, 7, 9, 4])
    layers = [0, 1, 1, 2, 2, 2, 3, 3, 1, 4, 5, 3]
    tree_tokens = torch.randint(24, (3, 12), generator=torch.Generator().manual_seed(5))
    block = masks.pack(masks.tree(parents))
    case, other, guided = Case(engine, guided=(True, False, True)), Case(engine, grid=4), (True, False, True)
    run([case.feed(i, range(start)) for i, start in enumerate(starts)])
    feeds = [
        Feed(lane, tokens, [start + n for n in layers], tree=Tree(start, block), keep=True)
        for lane, tokens, start in zip(case.lanes, tree_tokens, starts, strict=True)
    ]
    results = run([*feeds, other.feed(0, range(9))])
    assert results[3].logits is not None and close(results[3].logits.cond, other.cond[0][1:10])
    family = engine.family
    for i, (result, start) in enumerate(zip(results[:3], starts, strict=True)):
        assert result.logits is not None and result.features is not None
        assert (result.logits.uncond is not None) == guided[i]
        for node in range(12):
            path = [node]
            while parents[path[0]] >= 0:
                path.insert(0, int(parents[path[0]]))
            before = torch.cat([case.tokens[i][:start], tree_tokens[i][path], torch.zeros(1, dtype=torch.int64)])[None]
            assert close(result.logits.cond[node], family.ar(family.features([PROMPTS[i]]), before, 8)[0, -1])
            if result.logits.uncond is not None:
                assert close(result.logits.uncond[node], family.ar(family.null_features(1), before, 8)[0, -1])
        assert result.features.shape == (2 if guided[i] else 1, 12, 32)
        assert torch.allclose(family.ar.logits(result.features[0]), result.logits.cond, atol=1e-5)
    path = [0, 1, 3, 7, 9, 10]
    for i, start in enumerate(starts):
        case.lanes[i].move([start + node for node in path], start)
        after = torch.cat([case.tokens[i][:start], tree_tokens[i][path], torch.tensor([4, 0])])[None]
        [result] = run([Feed(case.lanes[i], torch.tensor([4]), range(start + 6, start + 7))])
        assert result.logits is not None
        assert close(result.logits.cond[0], family.ar(family.features([PROMPTS[i]]), after, 8)[0, -1])


@torch.inference_mode()
def test_an_overwritten_token_leaves_no_trace(engine: Engine) -> None:
    case, clean = Case(engine), Case(engine)
    wrong = Feed(case.lanes[0], (case.tokens[0] + 1) % 24, range(64))
    run([wrong])
    run([case.feed(0, range(64))])
    run([clean.feed(0, range(64))])
    for a, b in zip(case.cache.k + case.cache.v, clean.cache.k + clean.cache.v, strict=True):
        assert torch.equal(a[:2], b[:2])


@torch.inference_mode()
def test_hidden_positions_are_not_seen(engine: Engine) -> None:
    case = Case(engine)
    run([case.feed(0, range(63))])
    before = run([case.feed(0, range(40, 41))])[0].logits
    hidden = [7, 8, 30]
    case.lanes[0].hide(hidden)
    garbage = Feed(case.lanes[0], torch.tensor([1, 2, 3]), hidden, "none")
    masked = run([case.feed(0, range(40, 41))])[0].logits
    run([garbage])
    again = run([case.feed(0, range(40, 41))])[0].logits
    assert before is not None and masked is not None and again is not None
    assert not close(before.cond, masked.cond)
    assert torch.equal(masked.cond, again.cond)
    case.lanes[0].show(hidden)
    run([case.feed(0, hidden)])
    shown = run([case.feed(0, range(40, 41))])[0].logits
    assert shown is not None and close(shown.cond, before.cond)


@torch.inference_mode()
def test_draws_of_several_requests_are_those_of_each_alone(engine: Engine) -> None:
    params = [SamplingParams(cfg_scale=2.0), SamplingParams(cfg_scale=2.0), SamplingParams(cfg_scale=1.5, top_k=3)]

    def drawn(together: bool) -> list[Tensor | None]:
        case = Case(engine)
        feeds = [
            case.feed(i, range(4), draw=Draw(Noise(9 + i, 24, Purpose.TARGET, torch.device("cpu")), range(1, 5), p))
            for i, p in enumerate(params)
        ]
        return [r.tokens for r in (run(feeds) if together else [run([f])[0] for f in feeds])]

    for a, b in zip(drawn(True), drawn(False), strict=True):
        assert a is not None and b is not None and len(a) == 4 and torch.equal(a, b)


def test_rows_are_lent_adjacent_and_zeroed(engine: Engine) -> None:
    cache = KVCache(engine.family.ar, 4, rows=3)
    a, b = cache.take(2), cache.take(1)
    assert (a, b) == (0, 2)
    cache.k[0][a].fill_(7)
    cache.release(a, 2)
    assert cache.take(1) == 0 and cache.take(2) == 4, "a single free row is no place for two, and pairs begin even"
    assert len(cache.used) >= 5 and not cache.k[0][0].any()
    assert KVCache.bytes_per_row(engine.family.ar, 4) * 5 <= sum(t.nbytes for t in (*cache.k, *cache.v))


@torch.inference_mode()
def test_later_tokens_do_not_change_earlier_logits(engine: Engine) -> None:
    family = engine.family
    cond = family.features(["apple"])
    tokens = torch.randint(24, (1, 16), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 3) % 24
    a, b = family.ar(cond, tokens, 4), family.ar(cond, changed, 4)
    assert torch.equal(a[:, :10], b[:, :10])
    assert not torch.equal(a[:, 10:], b[:, 10:])


@torch.inference_mode()
def test_nll_is_the_mean_of_minus_log_probabilities(engine: Engine) -> None:
    tokens = torch.randint(24, (2, 4, 4), generator=torch.Generator().manual_seed(2))
    prompts = ["apple", "red"]
    logits = engine.family.ar(engine.family.features(prompts), tokens.flatten(1), 4).double()
    expected = -logits.log_softmax(-1).gather(-1, tokens.flatten(1)[..., None]).mean(dim=(1, 2))
    assert torch.allclose(engine.nll(prompts, tokens).double(), expected, atol=1e-5)
