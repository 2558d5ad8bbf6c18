"""Alignment: up-samplers on the drafter's own drafts, drafters towards their target, and what both leave alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mulosd.data.photos import Photos
from mulosd.engine.conditioning import ClassConditioner
from mulosd.engine.decoding import Eagle, MuloSD, Serial
from mulosd.engine.decoding.rejection import verify
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.family_config import Calibration, FamilyConfig
from mulosd.engine.likelihood import log_probabilities, teacher_forced
from mulosd.engine.models.upsampler import LatentResampler, ResamplerConfig
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.upsampling import upsample
from mulosd.train.align import AlignTask, align_upsampler, entropy
from mulosd.train.config import images_of
from mulosd.train.distill import DistillTask, distill_drafter, with_own_drafter
from mulosd.train.loop import Task
from mulosd.train.own_samples import SamplePool, draw, training_prompts

CPU = torch.device("cpu")
PROMPTS = ("red apple", "a pear on blue", "blue apple and pear")


def toy(**sampling: float) -> Family:
    torch.set_num_threads(1)
    family = random_family(grids=(2, 4), sharpness=3.0)
    found = [Calibration(s, u, pool=2, radius=1, tau=0.1) for s, u in ((2, "latent"), (2, "pixel"), (4, "x"))]
    family.config = FamilyConfig("random", SamplingParams(**sampling), calibrations={c.key: c for c in found})
    return family


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy(cfg_scale=1.5, temperature=0.8).save(tmp_path / "family")


def weights(family: Family) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.clone() for n, m in family._parts().items() for k, v in m.state_dict().items()}


def run(task: Task, steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.Adam([p for p in task.module.parameters() if p.requires_grad], lr=lr)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss, _ = task.loss(np.random.default_rng([7, step]), step, CPU)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("interval", [-1, 1, 6])
def test_training_sees_the_probabilities_that_verification_sees(interval: int) -> None:
    family = toy()
    params = SamplingParams(2.0, 0.7, cfg_interval=interval)
    tokens = torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(0))
    condition = family.condition(["red apple", "pear"])
    log_p = log_probabilities(teacher_forced(family, condition, tokens, 4, params), params, list(range(16)) * 2).view(
        2, 16, 24
    )
    for i in range(2):
        logits = teacher_forced(family, condition[i : i + 1], tokens[i : i + 1], 4, params)
        mass = verify(logits, tokens[i], family.neighbours(1), 0.0, params).mass
        torch.testing.assert_close(log_p[i].gather(-1, tokens[i, :, None])[:, 0].exp(), mass)
    greedy = log_probabilities(logits, SamplingParams(temperature=0.0, top_k=3), list(range(16)))
    torch.testing.assert_close(greedy, logits.cond.log_softmax(dim=-1))


def test_scores_are_what_pick_compares() -> None:
    torch.manual_seed(0)
    resampler = LatentResampler(ResamplerConfig(2, 4, 4, 8, 1, vocab_size=24, prior=0.3))
    assert resampler.counts is not None
    resampler.counts[:] = torch.arange(24.0) ** 2
    features, codebook = torch.randn(2, 4, 4, 4), torch.nn.functional.normalize(torch.randn(24, 4), dim=-1)
    scores = resampler.scores(features, codebook)
    assert torch.equal(scores.argmax(dim=-1), resampler.pick(features, codebook))
    resampler.counts = None
    assert not torch.equal(scores.argmax(dim=-1), resampler.pick(features, codebook))
    assert torch.equal(resampler.scores(features, codebook).argmax(dim=-1), resampler.pick(features, codebook))


def test_a_sample_depends_on_its_number_and_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    family = toy(cfg_scale=1.5)
    prompts = training_prompts(family, None, PROMPTS)
    drawn: list[int] = []
    generate = Engine.generate
    monkeypatch.setattr(
        Engine, "generate", lambda self, asked, **k: drawn.append(len(asked)) or generate(self, asked, **k)
    )

    def pool(seed: int = 0) -> SamplePool:
        return SamplePool(family, prompts, Serial(2), size=6, seed=seed)

    one, two = pool(), pool()
    asked, tokens, seeds = one.take([0, 3, 5, 3], CPU)
    assert tokens.shape == (4, 4) and torch.equal(tokens[1], tokens[3]) and drawn == [3]
    one.take([5, 0], CPU)
    assert drawn == [3]
    two.take([5, 4], CPU)
    again = two.take([3, 5, 0], CPU)
    assert again[0] == [asked[1], asked[2], asked[0]] and torch.equal(again[1], tokens[[1, 2, 0]])
    assert again[2] == [seeds[1], seeds[2], seeds[0]]
    assert torch.equal(draw(family, asked, seeds, Serial(2), CPU), tokens), "a sample is its prompt and its seed"
    everything, other = one.take(list(range(6)), CPU), pool(1).take(list(range(6)), CPU)
    assert len({tuple(t) for t in everything[1].tolist()}) > 2 and not torch.equal(everything[1], other[1])
    with pytest.raises(ValueError, match="pool"):
        SamplePool(family, prompts, Serial(2), size=0)


def test_prompts_are_those_given_classes_or_captions() -> None:
    family, rng = toy(), np.random.default_rng(0)
    assert {training_prompts(family, None, PROMPTS)(rng) for _ in range(40)} == set(PROMPTS)
    with pytest.raises(ValueError, match="--prompts-file"):
        training_prompts(family, None)
    family.conditioner = ClassConditioner(3)
    assert {training_prompts(family, None)(rng) for _ in range(40)} == {"0", "1", "2"}


def test_the_target_comes_to_believe_what_the_up_sampler_gives() -> None:
    family = toy(cfg_scale=1.5)
    prompts = training_prompts(family, None, PROMPTS)
    before = weights(family)

    def task(**options: float) -> AlignTask:
        return AlignTask(family, 2, prompts, None, pool=48, batch=8, temperature=0.1, **options)  # type: ignore[arg-type]

    def nll(aligned: AlignTask) -> float:
        # Drafts that training has not seen.
        held_out = SamplePool(family, prompts, Serial(2), size=48, seed=99)
        asked, drafts, _ = held_out.take(list(range(48)), CPU)
        tokens = aligned.distribution(aligned.resampler, drafts)[1]
        return -float(aligned.judge(asked, tokens).gather(-1, tokens[..., None]).mean())

    free = task(confidence=math.inf, agreement=0.0)
    start = nll(free)
    run(free, 25, 1e-2)
    end = nll(free)
    assert end < start - 0.5
    tied = task(confidence=math.inf, agreement=1000.0)
    assert nll(tied) == pytest.approx(start)
    run(tied, 25, 1e-2)
    assert nll(tied) > start - 0.25
    assert all(torch.equal(v, before[k]) for k, v in weights(family).items())


def test_where_the_target_is_unsure_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    family = toy()
    task = AlignTask(family, 2, training_prompts(family, None, PROMPTS), None, pool=8, batch=4, agreement=0.0)
    sharp, other = torch.full((4, 16, 24), -12.0), torch.full((4, 16, 24), -12.0)
    sharp[..., 3], other[..., 3] = 0.0, 0.0
    # Behind position 8 the two teachers are unsure in different ways.
    sharp[:, 8:, :12], other[:, 8:, 12:] = 0.0, 0.0
    with pytest.raises(ValueError, match="every 0"):
        AlignTask(family, 2, training_prompts(family, None, PROMPTS), None, every=0)
    losses = []
    for teacher in (sharp, other):
        log_p = teacher.log_softmax(dim=-1)
        assert (entropy(log_p)[:, :8] < 0.01).all() and (entropy(log_p)[:, 8:] > 2.4).all()
        monkeypatch.setattr(task, "judge", lambda *_, log_p=log_p: log_p)
        loss, figures = task.loss(np.random.default_rng(0), 0, CPU)
        assert figures["confident"] == pytest.approx(0.5)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1]) and losses[0] > 1
    task.confidence = 3.0
    assert task.loss(np.random.default_rng(0), 0, CPU)[0].item() != pytest.approx(losses[0])
    task.confidence = -1.0
    loss, _ = task.loss(np.random.default_rng(0), 0, CPU)
    loss.backward()
    assert loss.item() == 0 and all(not p.grad.any() for p in task.module.parameters() if p.grad is not None)


def test_drafts_are_judged_as_often_as_asked() -> None:
    class Noise:
        def captioned(self, rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[str, list[np.ndarray]]:  # type: ignore[type-arg]
            return "red apple", [rng.integers(255, size=(s, s, 3)).astype(np.uint8) for s in sizes]

        def image(self, rng: np.random.Generator, size: int, crop: int) -> np.ndarray:  # type: ignore[type-arg]
            raise AssertionError("the task asks for captioned pictures alone")

    family = toy()
    for every, steps in ((2, {0, 2, 4}), (0, set()), (1, set(range(5)))):
        prompts = training_prompts(family, Noise())
        task = AlignTask(family, 2, prompts, Noise(), pool=4, batch=2, every=every)
        figures = [task.loss(np.random.default_rng(step), step, CPU)[1] for step in range(5)]
        assert {i for i, f in enumerate(figures) if "nll" in f} == steps and all("hit" in f for f in figures)
        assert bool(task.drafts._kept) == bool(every)
    alone = AlignTask(family, 2, prompts, None, pool=4, batch=2, every=4)
    assert "nll" in alone.loss(np.random.default_rng(0), 1, CPU)[1]


def test_an_aligned_family_differs_in_its_up_sampler_alone(folder: Path, tmp_path: Path) -> None:
    old = Family.load(folder)
    options = {"prompts": PROMPTS, "batch": 2, "pool": 8}
    written = align_upsampler(folder, tmp_path / "new", tmp_path / "run", steps=3, lr=1e-2, **options)
    new = Family.load(written)
    for name, value in weights(new).items():
        assert torch.equal(value, weights(old)[name]) != name.startswith("resamplers.2-4"), name
    assert set(new.config.calibrations) == {"4-x"} and set(old.config.calibrations) > {"2-latent"}
    # The temperature of its training is that of its distribution, which drafts may be redrawn from.
    assert (new.resampler(2, 4).config.temperature, old.resampler(2, 4).config.temperature) == (5e-4, 0.05)
    assert new.sampling == old.sampling
    Engine(new).generate("red apple", decoder=MuloSD(tau=0.1, radius=0, pool=1))
    with pytest.raises(ValueError, match="exists already"):
        align_upsampler(folder, tmp_path / "new", tmp_path / "run", steps=3, **options)
    with pytest.raises(ValueError, match="no scale 3"):
        align_upsampler(folder, tmp_path / "x", tmp_path / "run2", scale=3, steps=3, **options)
    assert not (tmp_path / "x").exists()


def test_pictures_may_be_those_of_a_training_file(folder: Path, tmp_path: Path, config: Path, archive: Path) -> None:
    family = Family.load(folder)
    held_out = {Photos.load(archive).picture(i, 32).tobytes() for i in Photos.load(archive).split(True, 0.25)}
    source = images_of(family, held_out=True, config=config)
    assert source is not None
    for i in range(20):
        caption, (picture,) = source.captioned(np.random.default_rng(i), (32,))
        assert picture.tobytes() in held_out and caption in ("big red", "green", "blue")
    with pytest.raises(ValueError, match="one of them"):
        images_of(family, tmp_path, config=config)
    # Every 0 asks for real pictures.
    options = {"prompts": PROMPTS, "batch": 2, "pool": 4, "steps": 2, "every": 0}
    written = align_upsampler(folder, tmp_path / "new", tmp_path / "run", config=config, **options)
    old, new = (Family.load(path).resampler(2, 4).state_dict() for path in (folder, written))
    assert any(not torch.equal(old[k], new[k]) for k in old)
    with pytest.raises(ValueError, match="every 0"):
        align_upsampler(folder, tmp_path / "x", tmp_path / "run2", **options)


@pytest.mark.parametrize("part", ["align", "distill"])
def test_an_interrupted_alignment_goes_on_as_if_it_had_not_been(
    part: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, task = (align_upsampler, AlignTask) if part == "align" else (distill_drafter, DistillTask)
    options = {"prompts": PROMPTS, "batch": 2, "pool": 4, "steps": 4, "save_every": 2, "lr": 1e-2}
    train(folder, tmp_path / "whole", tmp_path / "a", **options)

    class Stopped(Exception):
        pass

    def stop(_: Task, step: int) -> None:
        if step == 2:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(task, "after_step", stop)
        with pytest.raises(Stopped):
            train(folder, tmp_path / "resumed", tmp_path / "b", **options)
    assert not (tmp_path / "resumed").exists()
    train(folder, tmp_path / "resumed", tmp_path / "b", **options)
    one, two = (weights(Family.load(tmp_path / n)) for n in ("whole", "resumed"))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_drafter_of_its_own_draws_what_it_drew_before() -> None:
    family = random_family(drafter=True)
    split = with_own_drafter(family, 4)
    assert [m.config.grids for m in split.models] == [(4,), (2, 8)] and split.grids == family.grids
    cond = family.features(["red apple"])
    for grid in family.grids:
        tokens = torch.randint(24, (1, grid * grid), generator=torch.Generator().manual_seed(grid))
        assert torch.equal(split.model(grid)(cond, tokens, grid), family.model(grid)(cond, tokens, grid))
    old, new = (Engine(f).generate("red apple", decoder=MuloSD(2, 0.1, 1, 2), seed=3).tokens for f in (family, split))
    assert torch.equal(old, new)
    assert split.eagle is not None and split.eagle.config.grids == (2, 8)
    old, new = (Engine(f).generate("red apple", decoder=Eagle(coupled=True), seed=3).tokens for f in (family, split))
    assert torch.equal(old, new)
    with torch.no_grad():
        split.model(4).output.weight.zero_()
    assert family.model(4).output.weight.any() and split.ar.output.weight.any()


def test_belief_is_the_mean_over_the_cell_that_a_token_becomes() -> None:
    family = with_own_drafter(toy(cfg_scale=1.5), 2)
    task = DistillTask(family, 2, training_prompts(family, None, PROMPTS), batch=2, confidence=1.6)
    asked = ["red apple", "pear"]
    drafts = torch.randint(24, (2, 4), generator=torch.Generator().manual_seed(0))
    belief, confident = task.belief(asked, drafts)
    tokens = upsample(family, drafts.view(2, 2, 2), 4, "latent")
    params = family.sampling
    seen = set()
    for b in range(2):
        logits = teacher_forced(family, family.condition(asked[b : b + 1]), tokens[b : b + 1].flatten(1), 4, params)
        log_p = log_probabilities(logits, params, range(16)).view(4, 4, 24)
        for j in range(4):
            found = []
            for row, col in ((2 * (j // 2) + y, 2 * (j % 2) + x) for y in range(2) for x in range(2)):
                p = log_p[row, col]
                if -(p.exp() * p).sum() <= 1.6:
                    found.append(float(p[tokens[b, row, col]]))
            seen.add(len(found))
            assert bool(confident[b, j]) == bool(found)
            if found:
                assert float(belief[b, j]) == pytest.approx(math.exp(sum(found) / len(found)), rel=1e-4)
    assert len(seen) > 1


def test_a_drafter_learns_from_its_target_and_leaves_it_alone() -> None:
    family = with_own_drafter(toy(cfg_scale=1.5), 2)
    prompts = training_prompts(family, None, PROMPTS)
    others = {k: v for k, v in weights(family).items() if not k.startswith("ar-2.")}
    own = DistillTask(family, 2, prompts, pool=32, batch=16, drafted=0.0)
    losses = run(own, 25, 5e-3)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3

    family = with_own_drafter(toy(cfg_scale=1.5), 2)
    judged = DistillTask(family, 2, prompts, batch=24, own=0.0, confidence=math.inf)

    def believed() -> float:
        asked = [PROMPTS[i % 3] for i in range(120)]
        drafts = Engine(family).generate(asked, decoder=Serial(2), seed=list(range(120)), batch_size=120).tokens
        return float(judged.belief(asked, drafts.flatten(1).clone())[0].mean())

    before = believed()
    run(judged, 30, 6e-3)
    after = believed()
    assert after > 1.3 * before
    assert all(torch.equal(v, others[k]) for k, v in weights(family).items() if not k.startswith("ar-2."))


def test_a_distilled_family_has_one_more_network(folder: Path, tmp_path: Path) -> None:
    options = {"prompts": PROMPTS, "batch": 2, "pool": 4, "steps": 2, "lr": 1e-2}
    written = distill_drafter(folder, tmp_path / "new", tmp_path / "run", **options)
    assert {p.stem for p in written.glob("*.safetensors")} == {"tokenizer", "text", "resamplers", "ar-2", "ar-4"}
    old, new = Family.load(folder), Family.load(written)
    cond, tokens = old.features(["pear"]), torch.arange(16)[None]
    assert torch.equal(old.ar(cond, tokens, 4), new.ar(cond, tokens, 4))
    assert not torch.equal(old.model(2)(cond, tokens[:, :4], 2), new.model(2)(cond, tokens[:, :4], 2))
    serial = [Engine(f).generate("pear", decoder=Serial(), seed=5).tokens for f in (old, new)]
    assert torch.equal(*serial)
    assert set(new.config.calibrations) == {"4-x"}
    log = [json.loads(line) for line in (tmp_path / "run" / "distill.jsonl").read_text().splitlines()]
    assert {"own", "belief", "confident"} <= set(log[-1])
    # What was distilled can be distilled again, and keeps its files.
    again = distill_drafter(written, tmp_path / "again", tmp_path / "run2", **options)
    assert (again / "ar-4.safetensors").read_bytes() == (written / "ar-4.safetensors").read_bytes()
    assert (again / "ar-2.safetensors").read_bytes() != (written / "ar-2.safetensors").read_bytes()
