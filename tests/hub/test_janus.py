"""Janus-Pro against transformers' own classes, from a repository that they saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mulosd.engine.engine import Engine
from mulosd.engine.scheduler import SchedulerConfig

PROMPTS = ["a red apple on the table", "blue sky"]
GRID = 4


@pytest.fixture(scope="module")
def engine(janus_folder: Path) -> Engine:
    return Engine.from_pretrained(janus_folder, prompt_length=16)


@pytest.fixture(scope="module")
def reference(janus_folder: Path) -> Any:
    return transformers.JanusForConditionalGeneration.from_pretrained(janus_folder).eval()


def inputs(folder: Path, prompt: str) -> Any:
    """What the processor makes of a prompt."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=text, generation_mode="image", return_tensors="pt")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("scale", [2.0, 5.0])
def test_greedy_guided_images_are_those_of_transformers(
    engine: Engine, reference: Any, janus_folder: Path, prompt: str, scale: float
) -> None:
    wanted = reference.generate(
        **inputs(janus_folder, prompt), generation_mode="image", do_sample=False, guidance_scale=scale
    )
    found = engine.generate(prompt, sampling={"temperature": 0, "cfg_scale": scale})
    assert len(wanted.unique()) > 4, "an image of one token would prove little"
    assert torch.equal(found.tokens[0], wanted.view(GRID, GRID))


@torch.no_grad()
def test_logits_are_those_of_transformers(engine: Engine, reference: Any, janus_folder: Path) -> None:
    tokens = torch.randint(0, 64, (1, GRID * GRID), generator=torch.Generator().manual_seed(1))
    prefix = reference.get_input_embeddings()(inputs(janus_folder, PROMPTS[0])["input_ids"])
    image = reference.prepare_embeddings_for_image_generation(tokens[:, :-1])
    features = reference.model.language_model(inputs_embeds=torch.cat([prefix, image], dim=1)).last_hidden_state
    wanted = reference.model.generation_head(features[:, prefix.shape[1] - 1 :])
    condition = engine.family.condition([PROMPTS[0]])
    found = engine.family.ar(condition.features, tokens, GRID)
    assert wanted.std() > 1
    assert (found - wanted).abs().max() <= 1e-4


@torch.no_grad()
def test_pixels_and_codes_are_those_of_transformers(engine: Engine, reference: Any) -> None:
    tokens = torch.randint(0, 64, (2, GRID * GRID), generator=torch.Generator().manual_seed(2))
    wanted = reference.decode_image_tokens(tokens).permute(0, 3, 1, 2)
    found = engine.family.tokenizer.decode(tokens.view(2, GRID, GRID))
    assert (found - wanted).abs().max() <= 1e-4


def test_the_image_of_a_seed_does_not_depend_on_its_batch_or_on_static_steps(engine: Engine) -> None:
    settings: dict[str, Any] = {"seed": 5, "decoder": "serial"}
    alone = [engine.generate(prompt, **settings).tokens[0] for prompt in PROMPTS]
    together = engine.generate(PROMPTS, **settings).tokens
    static = Engine(engine.family, config=SchedulerConfig(static=True)).generate(PROMPTS, **settings).tokens
    for i, tokens in enumerate(alone):
        assert torch.equal(together[i], tokens)
        assert torch.equal(static[i], tokens)
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("decoder", ["jacobi", "zipar:window=4", "jacobi:window=3"])
def test_exact_decoders_give_the_serial_image(engine: Engine, decoder: str) -> None:
    wanted = engine.generate(PROMPTS[0], seed=7).tokens
    assert torch.equal(engine.generate(PROMPTS[0], seed=7, decoder=decoder).tokens, wanted)


def test_the_default_decoder_is_serial_and_a_draft_is_refused_with_the_reason(engine: Engine) -> None:
    assert engine.resolve()[0].name == "serial"
    with pytest.raises(ValueError, match="no grid of it divides the largest"):
        engine.generate("a", decoder="mulo:tau=0.1:radius=1:pool=4")


def test_a_prompt_that_is_too_long_says_what_to_do(engine: Engine) -> None:
    with pytest.raises(ValueError, match="larger prompt_length"):
        engine.generate(" ".join(["apple"] * 17))


def test_another_grid_is_refused(janus_folder: Path) -> None:
    with pytest.raises(ValueError, match="draws 4x4 tokens and no other grid"):
        Engine.from_pretrained(janus_folder, grids=(8,))


def test_unguided_drawing_takes_the_conditional_branch_alone(engine: Engine, reference: Any) -> None:
    found = engine.generate(PROMPTS[0], sampling="temperature=0:cfg_scale=1").tokens.view(1, -1)
    condition = engine.family.condition([PROMPTS[0]])
    logits = engine.family.ar(condition.features, found, GRID)
    assert torch.equal(logits.argmax(dim=-1), found)


def test_precomputed_token_ids_take_the_place_of_the_processor(engine: Engine, janus_folder: Path) -> None:
    ids = inputs(janus_folder, PROMPTS[0])["input_ids"]
    condition = engine.family.conditioner.precomputed(ids)
    wanted = engine.generate(PROMPTS[0], seed=3).tokens
    assert torch.equal(engine.generate("named", seed=3, features=condition).tokens, wanted)
    with pytest.raises(ValueError, match="integer token ids"):
        engine.family.conditioner.precomputed(ids.float())


def test_a_saved_family_draws_the_same(engine: Engine, tmp_path: Path) -> None:
    from mulosd.engine.family import Family

    folder = engine.family.save(tmp_path / "family")
    again = Family.load(folder)
    assert again.describe() == engine.family.describe()
    stored = {name: value.half().float() for name, value in engine.family.ar.state_dict().items()}
    for name, value in again.ar.state_dict().items():
        assert torch.equal(value, stored[name]), name
