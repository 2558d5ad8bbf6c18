"""A family that is conditioned on classes: prompts, guidance, every decoder, storage. Float32, random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mulosd import Eagle, Engine, Jacobi, MuloSD, SamplingParams, Serial, ZipAR
from mulosd.engine.conditioning import ClassConditioner
from mulosd.engine.family import Family
from mulosd.engine.models.transformer import TransformerConfig
from mulosd.engine.random_family import random_family

NAMES = ("sunflower, sunflowers", "cougar face", "yin yang")
GUIDED = SamplingParams(cfg_scale=2.0, temperature=1.0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_family(grids=(2, 4), drafter=True, classes=NAMES))


def test_prompts_are_classes() -> None:
    conditioner = ClassConditioner(3, NAMES)
    for prompt in ("sunflower", "Sunflowers", "a sunflower", " THE  sunflower ", "sunflower, sunflowers", "0"):
        assert conditioner.id(prompt) == 0 and conditioner.name(prompt) == "sunflower"
    assert conditioner.id("yin yang") == 2 and ClassConditioner(3).name("2") == "2"
    for near in ("sunflowr", "a sunflour"):
        with pytest.raises(ValueError, match="such as sunflower"):
            conditioner.id(near)
    assert ClassConditioner(2, ["bass, fish", "fish"]).id("fish") == 1  # a name comes before a synonym of another
    assert ClassConditioner(1, ["the end"]).id("the end") == 0  # an article that belongs to the name
    with pytest.raises(ValueError, match="number from 0 to 2"):
        conditioner.id("3")


def test_guidance_is_against_the_row_of_no_class(engine: Engine) -> None:
    """Greedy tokens equal those of the definition: logits of class and null row, mixed, one token at a time."""
    ar, grid = engine.family.ar, 4
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    for i in range(16):
        given, null = (ar(torch.tensor([[[c]]]), tokens, grid)[0, i] for c in (1, len(NAMES)))
        tokens[0, i] = (null + 2.0 * (given - null)).argmax()
    made = engine.generate("cougar face", decoder=Serial(), sampling=SamplingParams(cfg_scale=2.0, temperature=0.0))
    assert torch.equal(made.tokens.flatten(1), tokens)
    with torch.no_grad():
        unguided = SamplingParams(cfg_scale=1.0, temperature=0.0)
        before = engine.generate("cougar face", decoder=Serial(), sampling=unguided).tokens
        row = ar.class_embedding.weight[len(NAMES)].clone()
        ar.class_embedding.weight[len(NAMES)] += 1.0
        assert torch.equal(engine.generate("cougar face", decoder=Serial(), sampling=unguided).tokens, before)
        ar.class_embedding.weight[len(NAMES)] = row


@pytest.mark.parametrize(
    "decoder",
    [ZipAR(window=4), Jacobi(), Eagle(coupled=True), MuloSD(tau=2.0, radius=0, pool=1)],
    ids=lambda d: type(d).__name__,
)
def test_exact_decoders_draw_what_serial_draws(engine: Engine, decoder: Serial) -> None:
    prompts = ["sunflower", "2", "yin yang", "cougar face"]
    asked = {"seed": [3, 1, 1, 5], "sampling": GUIDED}
    serial = engine.generate(prompts, decoder=Serial(), **asked)  # type: ignore[arg-type]
    other = engine.generate(prompts, decoder=decoder, **asked)  # type: ignore[arg-type]
    assert torch.equal(serial.tokens, other.tokens)
    assert torch.equal(serial.tokens[1], serial.tokens[2]) and not torch.equal(serial.tokens[0], serial.tokens[3])


def test_a_stored_family_has_the_same_distributions(engine: Engine, tmp_path: Path) -> None:
    folder = engine.family.save(tmp_path / "photo")
    loaded = Engine.from_pretrained(folder)
    assert isinstance(loaded.family.conditioner, ClassConditioner) and loaded.family.conditioner.names == list(NAMES)
    assert not (folder / "text.safetensors").exists()
    cond, sixteen = torch.tensor([[[0]], [[3]]]), torch.arange(16)[None].expand(2, -1)
    # The weights went through float16.
    stored, own = (f.ar(cond, sixteen, 4).softmax(-1) for f in (loaded.family, engine.family))
    torch.testing.assert_close(stored, own, atol=0.02, rtol=0)
    assert Family.load(folder, weights=False).parameters()["ar"] == engine.family.parameters()["ar"]


def test_a_class_is_one_slot() -> None:
    with pytest.raises(ValueError, match="one prefix slot"):
        TransformerConfig(16, 32, 1, 1, 32, 2, 8, (4,), head_dim=32, n_classes=5)
