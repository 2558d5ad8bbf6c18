"""The public verbs of the engine: errors, warnings, stats, family folders, calibration."""

import json
from pathlib import Path

import pytest
import torch

from mulosd.engine.calibrate import calibrate
from mulosd.engine.decoding import DraftOnly, MuloSD, Serial, ZipAR, parse
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family, store_calibration
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.stats import Progress


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.generate(""), "empty"),
        (lambda e: e.generate([]), "no prompt"),
        (lambda e: e.generate("a on and"), "filler"),
        (lambda e: e.generate("apple", num_images=0), "num_images"),
        (lambda e: e.generate("apple", seed=[1, 2]), "one seed or 1"),
        (lambda e: e.generate("apple", seed=-1), "seed must be a whole number"),
        (lambda e: e.generate("apple", decoder=MuloSD(scale=3, tau=0.1, radius=1, pool=1)), "scale 2 or 4"),
        (lambda e: e.generate("apple", decoder=MuloSD(scale=2)), "not calibrated"),
        (lambda e: e.generate("apple", decoder=MuloSD(scale=2, tau=0.1, radius=1, pool=25)), "codebook size 24"),
        (lambda e: e.generate("apple", decoder=MuloSD(scale=4, tau=1, radius=1, pool=1, rows_per_cycle=2)), "multiple"),
        (lambda e: e.generate("apple", decoder=Serial(grid=5)), r"\[2, 4, 8\]"),
        (lambda e: e.generate("apple pear red blue apple"), "shorten"),
        (lambda _: MuloSD(tau=-0.1), "tau"),
        (lambda _: MuloSD(tau=float("nan")), "tau"),
        (lambda _: MuloSD(radius=-1), "radius"),
        (lambda _: MuloSD(pool=0), "pool"),
        (lambda _: MuloSD(rejection="none"), "local, naive, raster"),
        (lambda _: DraftOnly(upsampler="bicubic"), "latent, pixel"),
        (lambda _: SamplingParams(top_p=0.0), "top_p"),
        (lambda _: SamplingParams(temperature=-1), "temperature"),
        (lambda _: Engine.from_pretrained("no-such-family"), "bundled families"),
        (lambda _: Engine(random_family(), dtype="int8"), "float32"),
        (lambda _: Engine(random_family(), device="banana"), "'banana'"),
    ],
)
def test_mistakes_get_a_clear_value_error(engine: Engine, call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(engine)  # type: ignore[operator]


def test_unknown_words_are_named(engine: Engine) -> None:
    result = engine.generate(["a red zeppelin", "apple"], decoder=DraftOnly())
    assert len(result.warnings) == 1 and "'zeppelin'" in result.warnings[0]


def test_stats_count_forwards_by_role(engine: Engine) -> None:
    seen: list[Progress] = []
    result = engine.generate("apple", decoder=Serial(), progress=seen.append)
    stats = result.stats[0]
    assert stats.forwards == {"prefill": 1, "serial": 63} and stats.fed == {"prefill": 4, "serial": 63}
    assert stats.rejection is None and "serial" in str(stats)
    assert [p.done for p in seen if p.stage == "serial"] == list(range(1, 65))
    assert abs(sum(v for k, v in stats.seconds.items() if k != "total") - stats.seconds["total"]) < 0.2
    json.dumps(stats.to_dict())
    mulo = engine.generate("apple", decoder=MuloSD(scale=4, tau=0.0, radius=0, pool=1)).stats[0]
    assert mulo.forwards == {"prefill": 2, "draft": 3, "verify": 1}
    assert mulo.settings["tau"] == 0.0 and mulo.settings["scale"] == 4
    assert result.images[0].size == (16, 16)


def test_family_round_trip_and_damage(tmp_path: Path) -> None:
    family = random_family()
    for module in (family.tokenizer, family.text, family.ar, *family.resamplers.values()):
        module.half().float()  # weights are stored in float16
    folder = family.save(tmp_path / "one")
    with pytest.raises(ValueError, match="exists already"):
        family.save(folder)
    before = Engine(family).generate("apple", decoder=MuloSD(scale=2, tau=0.03, radius=1, pool=2))
    after = Engine.from_pretrained(folder).generate("apple", decoder=MuloSD(scale=2, tau=0.03, radius=1, pool=2))
    assert torch.equal(before.tokens, after.tokens)
    (folder / "ar.safetensors").unlink()
    with pytest.raises(ValueError, match=r"ar\.safetensors is missing"):
        Family.load(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_saved_tokenizer_gives_the_same_tokens(tmp_path: Path) -> None:
    """The encoder and the codebook are stored exactly: near codes differ by less than half precision can tell."""
    family = random_family(vocab_size=512)
    image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    again = Family.load(family.save(tmp_path / "one")).tokenizer
    with torch.no_grad():
        assert torch.equal(family.tokenizer.latents(image), again.latents(image))
        assert torch.equal(family.tokenizer.encode(image), again.encode(image))


def test_calibration_meets_the_wanted_rejection_and_is_stored(tmp_path: Path) -> None:
    folder = random_family().save(tmp_path / "family")
    engine = Engine.from_pretrained(folder)
    prompts = ["apple", "red pear", "blue", "pear"]
    found = calibrate(engine, prompts, rejection=0.25, scale=2, pool=2, radius=1, seed=4)
    assert abs(found.rejection - 0.25) < 0.02 and found.tau > 0
    store_calibration(folder, found)
    fresh = Engine.from_pretrained(folder)
    stats = fresh.generate(prompts, decoder=MuloSD(scale=2), seed=4).stats
    assert stats[0].settings["tau"] == found.tau
    assert abs(sum(s.rejection or 0 for s in stats) / 4 - found.rejection) < 1e-6
    assert (fresh.family.scale, fresh.family.upsampler) == (4, "latent"), "storing chooses nothing"
    store_calibration(folder, calibrate(engine, prompts, scale=2, upsampler="pixel", seed=4), default=True)
    chosen = Engine.from_pretrained(folder)
    for decoder in (MuloSD(), DraftOnly()):
        settings = chosen.generate("apple", decoder=decoder).stats[0].settings
        assert (settings["scale"], settings["upsampler"]) == (2, "pixel")
    assert MuloSD(scale=2, upsampler="latent").resolve(chosen.family).tau == found.tau
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(engine, prompts, rejection=1.0)


def test_greedy_ignores_the_seed_and_sampling_does_not(engine: Engine) -> None:
    greedy = [
        engine.generate("apple", sampling=SamplingParams(temperature=0), decoder=Serial(), seed=s) for s in (1, 2)
    ]
    assert torch.equal(greedy[0].tokens, greedy[1].tokens)
    drawn = [engine.generate("apple", decoder=Serial(), seed=s).tokens for s in (1, 2, 1)]
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_serial_follows_the_target_distribution() -> None:
    """First token over 4,000 seeds against the model's own softmax: chi-square, 23 degrees of freedom.

    At alpha = 1e-4 the test finds a total-variation shift of 5 % in one code with power above 0.99.
    """
    from scipy.stats import chisquare

    family = random_family(grids=(1, 2), sharpness=3.0)
    engine = Engine(family)
    n = 4000
    result = engine.generate("apple", decoder=Serial(grid=1), seed=0, num_images=n, batch_size=n)
    logits = family.ar(family.features(["apple"]), torch.zeros(1, 1, dtype=torch.int64), 1)
    expected = torch.softmax(logits[0, 0].double(), -1) * n
    counts = torch.bincount(result.tokens.flatten(), minlength=24).double()
    assert chisquare(counts.numpy(), expected.numpy() * (counts.sum() / expected.sum()).item()).pvalue > 1e-4


def test_decoders_are_read_from_text() -> None:
    assert parse("serial") == Serial() and parse("serial:grid=4") == Serial(4)
    assert parse("zipar:window=3:zero_kv=true") == ZipAR(3, zero_kv=True)
    assert parse("mulo:tau=0.5:radius=none:window=2:upsampler=pixel") == MuloSD(tau=0.5, window=2, upsampler="pixel")
    for text, message in (
        ("magic", "serial, draft-only, mulo, product, zipar, jacobi, eagle"),
        ("serial:tau=1", "no setting 'tau=1'"),
        ("mulo:tau", "key=value"),
        ("mulo:radius=two", "int or none"),
        ("zipar:zero_kv=maybe", "bool"),
        ("zipar:window=0", "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_what_was_resampled_is_told(engine: Engine) -> None:
    prompts, seeds = ["red apple", "blue pear"], [3, 4]
    draft = engine.generate(prompts, decoder=DraftOnly(2), seed=seeds)
    result = engine.generate(prompts, decoder=MuloSD(2, tau=0.05, radius=0, pool=2), seed=seeds)
    assert draft.resampled is None
    assert result.resampled is not None
    assert result.resampled.shape == result.tokens.shape
    assert 0 < result.resampled.float().mean() < 1
    assert result.resampled.float().mean(dim=(1, 2)).tolist() == pytest.approx([s.coverage for s in result.stats])
    assert torch.equal(result.tokens[~result.resampled], draft.tokens[~result.resampled]), "the others are the draft's"
    for tau, share in ((0.0, 0.0), (2.0, 1.0)):
        limit = engine.generate("pear", decoder=MuloSD(2, tau=tau, radius=0, pool=2))
        assert limit.resampled is not None
        assert limit.resampled.float().mean() == share
    *_, final = engine.stream(prompts[1], decoder=MuloSD(2, tau=0.05, radius=0, pool=2), seed=seeds[1])
    assert final.resampled is not None
    assert torch.equal(final.resampled, result.resampled[1])
