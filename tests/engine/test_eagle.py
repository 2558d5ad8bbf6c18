"""EAGLE is lossless: coupled, it is serial decoding; plain, it has its distribution. LANTERN relaxes it by a bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mulosd.engine.batch import Feed
from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.decoding import Eagle, Lantern, MuloSD, Serial, parse
from mulosd.engine.decoding.draft_tree import DraftTree, Drawn, Foreseen, accept, accept_greedily
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.models.eagle import EagleConfig, EagleDrafter
from mulosd.engine.random_family import random_family
from mulosd.engine.runner import run
from mulosd.engine.sampling import Logits, Noise, Purpose, SamplingParams, processed
from mulosd.engine.scheduler import SchedulerConfig
from mulosd.kernels.upsample_pool import neighbours

from .conftest import PROMPTS
from .exact_law import assert_follows, assert_follows_target, joint, pairs, toy_family

# The last one proposes the whole codebook, where as many positions are left.
TREES = [Eagle(), Eagle(3, 1, 3), Eagle(6, 8, 40), Eagle(1, 24, 24)]


@pytest.fixture(scope="module")
def drafting() -> Engine:
    """The family of `engine` with a drafter of random weights: most of what it proposes falls."""
    return Engine(random_family(drafter=True))


@pytest.fixture(scope="module")
def perfect() -> Engine:
    """A family without context, features being embedded tokens alone, and a drafter that passes these on."""
    family = random_family(drafter=True)
    assert family.eagle is not None
    for block in (*family.ar.blocks, *family.eagle.blocks):
        block.wo.weight.data.zero_()
        block.w2.weight.data.zero_()
    size = family.ar.config.dim
    family.eagle.fuse.weight.data = torch.cat([torch.zeros(size, size), torch.eye(size)], dim=1)
    return Engine(family)


@pytest.mark.parametrize("tree", TREES, ids=lambda d: f"{d.depth}-{d.top_k}-{d.total}")
def test_coupled_is_serial_token_for_token(drafting: Engine, sampling: SamplingParams, tree: Eagle) -> None:
    serial = drafting.generate(PROMPTS, decoder=Serial(), sampling=sampling, seed=4)
    decoder = Eagle(tree.depth, tree.top_k, tree.total, coupled=True)
    eagle = drafting.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=4)
    assert torch.equal(serial.tokens, eagle.tokens)
    assert all(s.forwards["verify"] <= 63 for s in eagle.stats)
    if tree.total == 24 and sampling.top_k == 0:
        assert all(s.forwards["verify"] <= (64 - 24) / 2 + 24 for s in eagle.stats)


@pytest.mark.slow
def test_coupled_is_serial_over_seeds_and_settings(drafting: Engine) -> None:
    """Twenty-four images: trees of many shapes under samplings of many kinds."""
    shapes = [Eagle(d, k, n, coupled=True) for d, k, n in ((2, 2, 5), (5, 3, 9), (8, 6, 64), (100, 24, 500))]
    for seed, decoder in enumerate(shapes * 2):
        sampling = SamplingParams(1 + seed % 3, 0.5 + seed / 20, top_k=seed % 7, top_p=1 - seed % 4 / 10)
        serial = drafting.generate(PROMPTS, decoder=Serial(), sampling=sampling, seed=seed)
        eagle = drafting.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=seed)
        assert torch.equal(serial.tokens, eagle.tokens)


def test_greedy_is_serial(drafting: Engine) -> None:
    greedy = SamplingParams(cfg_scale=1.5, temperature=0)
    serial = drafting.generate(PROMPTS, decoder=Serial(), sampling=greedy)
    lends_nothing = [Eagle(relaxed=Lantern(1, 0.9)), Eagle(relaxed=Lantern(8, 0.0))]
    for decoder in (Eagle(), Eagle(coupled=True), *lends_nothing):
        assert torch.equal(serial.tokens, drafting.generate(PROMPTS, decoder=decoder, sampling=greedy).tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "sampling"),
    [
        (Eagle(3, 3, 4, grid=2), SamplingParams(cfg_scale=1.5)),
        (Eagle(2, 2, 2, grid=2), SamplingParams(top_k=4, temperature=0.8)),
    ],
    ids=["wide, guided", "narrow, top-k"],
)
def test_plain_follows_the_target(tree: Eagle, sampling: SamplingParams) -> None:
    assert_follows_target(tree, sampling)


@pytest.mark.slow
@pytest.mark.parametrize("interval", [0, 1])
def test_plain_guides_where_serial_does(interval: int) -> None:
    """1,000 images: a total variation of 0.15 in a pair is found with probability above 0.99 at level 1e-4; guidance
    everywhere would differ by more than 0.5."""
    sampling = SamplingParams(cfg_scale=3.0, cfg_interval=interval)
    family = toy_family()
    here, everywhere = (pairs(joint(family, s)) for s in (sampling, replace(sampling, cfg_interval=-1)))
    distances = [float((a - b).abs().sum() / 2) for (_, a), (_, b) in zip(here, everywhere, strict=True)]
    assert max(distances) > 0.5, "the test has no power"
    assert_follows_target(Eagle(3, 3, 4, grid=2), sampling, runs=1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_proposers_and_serial_prepare_logits_alike(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(4, 24, generator=generator) * 3 for _ in range(2))
    logits = Logits(cond, uncond, dtype)
    for sampling in (
        SamplingParams(cfg_scale=2.0, temperature=0.8, cfg_in_model_dtype=True),
        SamplingParams(cfg_scale=2.0, cfg_interval=3),
    ):
        for position in (4, 5):  # the last guided step, and the first that is not
            wanted = processed(logits, sampling, [position] * 4).softmax(-1)
            found = Drawn(3, 24, sampling, torch.device("cpu")).children(logits, position, 5)
            assert found.q is not None and torch.equal(found.q, wanted)
            noise = Noise(3, 24, Purpose.TARGET, torch.device("cpu"))
            foreseen = Foreseen(noise, sampling).children(logits, position, 1).tokens[:, 0]
            assert torch.equal(foreseen, (wanted.log() + noise.rows([position])).argmax(-1))
            greedy = replace(sampling, temperature=0.0)
            best = Foreseen(noise, greedy).children(logits, position, 1).tokens[:, 0]
            assert torch.equal(best, processed(logits, greedy, [position] * 4).argmax(-1))


@pytest.mark.parametrize("sampling", [SamplingParams(2.0, cfg_interval=20), SamplingParams(2.0, cfg_interval=0)])
def test_coupled_and_greedy_are_serial_with_a_guided_interval(drafting: Engine, sampling: SamplingParams) -> None:
    for params in (sampling, replace(sampling, temperature=0.0)):
        serial = drafting.generate(PROMPTS, decoder=Serial(), sampling=params, seed=4).tokens
        for decoder in (Eagle(coupled=True), *([Eagle()] if params.temperature == 0 else [])):
            assert torch.equal(serial, drafting.generate(PROMPTS, decoder=decoder, sampling=params, seed=4).tokens)


@pytest.mark.parametrize("kept", [0, 1, 2, 3, "by rank"])
def test_a_node_follows_the_target_however_many_children_are_kept(kept: int | str) -> None:
    """60,000 draws at one node: a total variation of 0.011 is found with probability above 0.99 at level 1e-4."""
    runs, vocab = 60_000, 8
    generator = torch.Generator().manual_seed(1)
    p_logits, q_logits = (2 * torch.randn(1, vocab, generator=generator) for _ in range(2))
    p_logits[0, 3] = q_logits[0, 5] = -torch.inf
    p, q = p_logits.softmax(-1).expand(runs, -1), q_logits.softmax(-1)
    drawn = Drawn(7, vocab, SamplingParams(), torch.device("cpu")).children(
        Logits(q_logits.expand(runs, -1), None), 0, 3
    )
    assert_follows(torch.bincount(drawn.tokens[:, 0], minlength=vocab), q[0])
    if kept == "by rank":  # known before each is drawn; with `confidence`, which is not, the statistic is 3,200
        present = drawn.rank > 0.3
        assert 0.1 < present[:, 2].float().mean() < 0.9
    else:
        present = (torch.arange(3) < kept).expand(runs, -1).clone()
        present[:, 2] &= drawn.tokens[:, 0] < 4  # may depend on an older sibling
    uniform = torch.rand(runs, 3, generator=generator)
    choice, residual = accept(p, q.expand(runs, -1), drawn.tokens, present, uniform)
    rest = torch.multinomial(residual, 1, generator=generator)
    tokens = torch.where(choice[:, None] >= 0, drawn.tokens.gather(1, choice.clamp(min=0)[:, None]), rest)[:, 0]
    assert_follows(torch.bincount(tokens, minlength=vocab), p[0])
    assert kept == 0 or (choice >= 0).float().mean() > 0.2


def test_ranks_are_known_before_the_draw_and_fall(drafting: Engine) -> None:
    logits = torch.randn(50, 24, generator=torch.Generator().manual_seed(0)) * 3
    children = Drawn(3, 24, SamplingParams(), torch.device("cpu")).children(Logits(logits, None), 0, 6)
    q = logits.softmax(-1)
    for node in range(50):
        left = q[node].clone()
        for j in range(6):
            assert children.rank[node, j] == left.max()
            left[children.tokens[node, j]] = 0
        assert len(set(children.tokens[node].tolist())) == 6
    assert (children.rank >= children.confidence).all() and (children.rank.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("decoder", [Eagle(3, 1, 3), Eagle(3, 1, 3, coupled=True)], ids=["plain", "coupled"])
def test_a_perfect_drafter_is_always_right(perfect: Engine, sampling: SamplingParams, decoder: Eagle) -> None:
    result = perfect.generate(PROMPTS, decoder=decoder, sampling=sampling, seed=2)
    assert len(result.tokens.unique()) > 5
    for stats in result.stats:
        assert stats.forwards["verify"] == -(-63 // 4) and stats.forwards["draft"] <= 3 * 16
        assert stats.accepted == 63 / 16


def test_lantern_that_lends_nothing_is_plain(drafting: Engine, sampling: SamplingParams) -> None:
    plain = drafting.generate(PROMPTS, decoder=Eagle(), sampling=sampling, seed=9).tokens
    for relaxed in (Lantern(1, 0.9), Lantern(8, 0.0)):
        assert torch.equal(
            plain, drafting.generate(PROMPTS, decoder=Eagle(relaxed=relaxed), sampling=sampling, seed=9).tokens
        )


def test_lantern_accepts_more(drafting: Engine) -> None:
    """Six images: with 24 neighbours and delta 0.9 most proposals stand."""

    def accepted(decoder: Eagle) -> float:
        stats = drafting.generate("apple", decoder=decoder, num_images=6).stats
        return sum(s.accepted or 0 for s in stats)

    assert accepted(Eagle(relaxed=Lantern(24, 0.9))) > accepted(Eagle(relaxed=Lantern(24, 0.2))) > accepted(Eagle())


def test_lantern_moves_mass_from_the_nearest_within_the_bound() -> None:
    table = torch.tensor([[0, 2, 1, 3], [1, 0, 2, 3], [2, 0, 1, 3], [3, 2, 1, 0]], dtype=torch.int32)
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    moved = Lantern(4, 0.45).lend(p, torch.tensor([[0], [3]]), table)
    # Of token 0 the nearest is 2 (0.3); 1 would bring 0.5. Of token 3 it is 2 (0.3); 1 would bring 0.5.
    assert torch.allclose(moved, torch.tensor([[0.4, 0.2, 0.0, 0.4], [0.1, 0.2, 0.0, 0.7]]))
    family = random_family()
    table = neighbours(family.tokenizer.codebook, 10)
    p = torch.randn(200, 24, generator=torch.Generator().manual_seed(3)).mul(2).softmax(-1)
    token = torch.arange(200)[:, None] % 24
    for delta in (0.0, 0.1, 0.5):
        moved = Lantern(10, delta).lend(p, token, table)
        assert torch.allclose(moved.sum(1), torch.ones(200), atol=1e-6)
        assert ((moved - p).abs().sum(1) / 2 <= delta + 1e-6).all()
        assert (moved.gather(1, token) >= p.gather(1, token)).all()


def test_what_lantern_draws_may_differ_by_more_than_delta() -> None:
    """The exact law behind a node with one child, over all children that may have been drawn."""
    table = neighbours(random_family().tokenizer.codebook, 24)
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(24, generator=generator).mul(2).softmax(-1) for _ in range(2))
    child = torch.arange(24)[:, None]
    for delta, exceeds in ((0.0, False), (0.1, True)):
        relaxed = Lantern(24, delta)
        rows = p.expand(24, -1)
        stands = (relaxed.lend(rows, child, table).gather(1, child)[:, 0] / q).clamp(max=1)
        # A uniform number of nearly 1 rejects every child that can be rejected.
        left = accept(rows, q.expand(24, -1), child, child >= 0, torch.full((24, 1), 1 - 1e-6), relaxed, table).residual
        law = q * stands + (q * (1 - stands)) @ left
        assert float(law.sum()) == pytest.approx(1, abs=1e-5)
        distance = float((law - p).abs().sum() / 2)
        assert distance > delta + 0.02 if exceeds else distance < 1e-5


def longest_path(p: torch.Tensor, tree: DraftTree, relaxed: Lantern, table: torch.Tensor) -> list[int]:
    """Every path from the root, node by node, by the rule of the published code; the first of the longest."""

    def stands(node: int) -> bool:
        before, token = p[tree.parents[node]].tolist(), int(tree.tokens[node])
        near = [before[code] for code in table[token, 1 : relaxed.k].tolist()]
        sums = [sum(near[: i + 1]) for i in range(len(near))]
        return before[token] + max((s for s in sums if s <= relaxed.delta), default=0) >= max(before)

    best = [0]
    for node in range(1, len(tree)):
        path = [node]
        while tree.parents[path[0]] >= 0:
            path.insert(0, tree.parents[path[0]])
        if len(path) > len(best) and all(map(stands, path[1:])):
            best = path
    return best


def test_greedy_lantern_is_the_published_rule() -> None:
    """Against every path of random trees, judged node by node: a token stands when its probability with that of its
    nearest codes, as many as stay within delta, is the largest; the longest path is taken, the first of equals."""
    table = neighbours(random_family().tokenizer.codebook, 9)
    generator = torch.Generator().manual_seed(5)
    lengths = set()
    for k, delta in ((9, 0.5), (4, 0.3), (9, 0.05), (1, 0.9)) * 8:
        n = 14
        parents = [-1, *(int(torch.randint(i, (1,), generator=generator)) for i in range(1, n))]
        p = torch.randn(n, 24, generator=generator).mul(2).softmax(-1)
        tokens = torch.randint(24, (n,), generator=generator)
        # Half of the nodes have the likeliest token, so that paths get long.
        for i in range(1, n, 2):
            tokens[i] = p[parents[i]].argmax()
        tree = DraftTree(tokens, parents, [0] * n, [0] * n, [-1] * n, None)

        best = longest_path(p, tree, Lantern(k, delta), table)
        assert accept_greedily(p, tree, Lantern(k, delta), table[:, :k]) == best
        lengths.add(len(best))
    assert len(lengths) > 2


def test_greedy_lantern_is_relaxed(drafting: Engine) -> None:
    greedy = SamplingParams(cfg_scale=1.5, temperature=0)
    serial = drafting.generate(PROMPTS, decoder=Serial(), sampling=greedy)
    exact, relaxed = (
        drafting.generate(PROMPTS, decoder=d, sampling=greedy) for d in (Eagle(), Eagle(relaxed=Lantern(24, 0.9)))
    )
    assert not torch.equal(relaxed.tokens, serial.tokens)
    brought = [sum(s.accepted or 0 for s in r.stats) for r in (exact, relaxed)]
    assert brought[1] > brought[0]
    again = drafting.generate(PROMPTS, decoder=Eagle(relaxed=Lantern(24, 0.9)), sampling=greedy, batch_size=1, seed=9)
    assert torch.equal(again.tokens, relaxed.tokens), "nothing is drawn: neither the seed nor the batch matters"


def test_batches_decoders_and_chunks_do_not_change_the_image(drafting: Engine) -> None:
    decoders = [
        Eagle(),
        Serial(),
        Eagle(coupled=True),
        MuloSD(tau=0.02, radius=1, pool=3),
        Eagle(2, 3, 5, relaxed=Lantern(4, 0.3)),
    ]
    alone = [drafting.generate("red pear", decoder=d, seed=i).tokens[0] for i, d in enumerate(decoders)]
    limited = Engine(drafting.family, config=SchedulerConfig(max_running=4, max_tokens=20))
    for engine in (drafting, limited):
        numbers = [engine.add_request("red pear", decoder=d, seed=i) for i, d in enumerate(decoders)]
        made = {}
        while engine.busy:
            made |= {u.request: u.tokens for u in engine.step()}
        for number, tokens in zip(numbers, alone, strict=True):
            assert torch.equal(made[number], tokens)
        assert not any(any(c.used) for c in engine.caches.values())
    many = drafting.generate(PROMPTS, decoder=Eagle(), seed=[1, 2, 3], batch_size=3).tokens
    one = drafting.generate(PROMPTS, decoder=Eagle(), seed=[1, 2, 3], batch_size=1).tokens
    assert torch.equal(many, one)


@torch.inference_mode()
def test_cached_features_equal_the_definition(drafting: Engine) -> None:
    family = drafting.family
    assert family.eagle is not None
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(24, (1, 20), generator=generator)
    features = torch.cat([family.features(["apple"]), family.null_features(1)])
    before = F.pad(torch.randn(2, 19, 32, generator=generator), (0, 0, 1, 0))
    wanted = family.eagle(features, before, tokens.expand(2, -1), 8)
    lane = Lane(KVCache(family.eagle, 8), features)
    for start, stop in ((0, 7), (7, 8), (8, 20)):
        where = range(start, stop)
        [result] = run([Feed(lane, tokens[0, start:stop], where, features=before[:, start:stop], keep=True)])
        assert result.features is not None and result.logits is not None
        assert torch.allclose(result.features, wanted[:, start:stop], atol=1e-5)
        assert torch.allclose(result.logits.cond, family.eagle.logits(wanted[0, start:stop]), atol=1e-4)


def test_a_request_holds_both_caches(drafting: Engine) -> None:
    family = drafting.family
    assert family.eagle is not None
    own = Eagle().bytes_per_row(family)
    assert own == KVCache.bytes_per_row(family.ar, 8) + KVCache.bytes_per_row(family.eagle, 8)
    with pytest.raises(ValueError, match="KV cache"):
        Engine(family, config=SchedulerConfig(kv_budget=own - 1)).add_request("apple", decoder=Eagle())


def test_a_family_keeps_its_drafter(drafting: Engine, tmp_path: Path) -> None:
    folder = drafting.family.save(tmp_path / "family")
    loaded = Family.load(folder)
    assert loaded.eagle is not None and drafting.family.eagle is not None
    assert loaded.eagle.config == drafting.family.eagle.config
    assert loaded.parameters() == drafting.family.parameters() and "eagle" in loaded.parameters()
    for a, b in zip(loaded.eagle.state_dict().values(), drafting.family.eagle.state_dict().values(), strict=True):
        assert torch.equal(a, b.half().float())
    (folder / "eagle.safetensors").unlink()
    with pytest.raises(ValueError, match=r"eagle\.safetensors is missing"):
        Family.load(folder)


def test_what_cannot_be_is_told(engine: Engine, drafting: Engine) -> None:
    with pytest.raises(ValueError, match="mulosd train eagle"):
        engine.generate("apple", decoder=Eagle())
    with pytest.raises(ValueError, match="no 16x16 grid"):
        drafting.generate("apple", decoder=Eagle(grid=16))
    family = random_family()
    family.eagle = EagleDrafter(EagleConfig((4,), 16, 1, 8), family.ar)
    with pytest.raises(ValueError, match=r"8x8 grid \(it has: 4\)"):
        Eagle().resolve(family)
    with pytest.raises(ValueError, match="head_dim is 16"):
        EagleDrafter(EagleConfig((4,), 32, 1, 8), family.ar)
    with pytest.raises(ValueError, match="top_k must be at most the codebook size 24"):
        Eagle(top_k=25).resolve(drafting.family)
    with pytest.raises(ValueError, match="lantern_k must be at most"):
        Eagle(relaxed=Lantern(25)).resolve(drafting.family)
    for wrong in ({"depth": 0}, {"top_k": 0}, {"total": 0}, {"coupled": True, "relaxed": Lantern()}):
        with pytest.raises(ValueError, match=r"at least 1|leave one"):
            Eagle(**wrong)  # type: ignore[arg-type]
    for text, message in (
        ("eagle:delta=1", "delta"),
        ("eagle:lantern_k=0", "lantern_k"),
        ("eagle:relaxed=1", "no setting"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_text_and_settings_name_the_same_decoder() -> None:
    assert parse("eagle") == Eagle()
    assert parse("eagle:depth=3:top_k=2:total=7:coupled=true") == Eagle(3, 2, 7, coupled=True)
    assert parse("eagle:lantern_k=8:delta=0.1:grid=4") == Eagle(relaxed=Lantern(8, 0.1), grid=4)
    assert parse("eagle:delta=0.1") == Eagle(relaxed=Lantern(delta=0.1))
    for decoder in (Eagle(), Eagle(relaxed=Lantern(8, 0.1), grid=4)):
        assert Eagle.from_settings(decoder.settings()) == decoder
