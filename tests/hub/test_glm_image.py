"""GLM-Image's AR stage against transformers' own classes: two grids in one sequence, three-part positions, drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mulosd.engine.engine import Engine
from mulosd.engine.host_step import KEY, stack_of
from mulosd.engine.hub import Wanted, load_family, load_repository
from mulosd.engine.scheduler import SchedulerConfig
from mulosd.kernels import host

SMALL, LARGE = 3, 6
IDS = torch.tensor([[71, 73, 74, 75, 76, 69, 95, 95, 70, 69, 105, 105, 70, 64]])


@pytest.fixture(scope="module")
def engine(glm_image_folder: Path) -> Engine:
    wanted = Wanted("tiny", grids=(LARGE,), prompt_length=20, first_grid=SMALL)
    return Engine(load_repository(glm_image_folder, wanted))


@pytest.fixture(scope="module")
def reference(glm_image_folder: Path) -> Any:
    folder = glm_image_folder / "vision_language_encoder"
    return transformers.GlmImageForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def wanted(reference: Any) -> torch.Tensor:
    """Codes int64 [SMALL**2 + LARGE**2] that transformers draws, out of the image codes."""
    found: torch.Tensor = reference.generate(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), images_per_sample=torch.tensor([2]),
        image_grid_thw=torch.tensor([[1, LARGE, LARGE], [1, SMALL, SMALL]]), max_new_tokens=SMALL**2 + LARGE**2,
        do_sample=False, prefix_allowed_tokens_fn=lambda *_: list(range(64)),
    )[0, IDS.shape[1] :]  # fmt: skip
    return found


def drawn(engine: Engine, decoder: str = "serial", **settings: Any) -> Any:
    condition = engine.family.conditioner.precomputed(IDS)
    return engine.generate("named", decoder=decoder, features=condition, **settings)


def test_greedy_images_are_those_of_transformers(engine: Engine, wanted: torch.Tensor) -> None:
    assert len(wanted.unique()) > 8
    found = drawn(engine, sampling="temperature=0").tokens[0]
    assert torch.equal(found, wanted[SMALL**2 :].view(LARGE, LARGE))


@pytest.mark.skipif(host.unusable() is not None, reason=str(host.unusable()))
def test_host_kernels_take_its_layers_whole(glm_image_folder: Path, wanted: torch.Tensor) -> None:
    given = Wanted("tiny", grids=(LARGE,), prompt_length=20, first_grid=SMALL)
    native = Engine(load_repository(glm_image_folder, given), linear="native")
    found = drawn(native, sampling="temperature=0").tokens[0]
    assert torch.equal(found, wanted[SMALL**2 :].view(LARGE, LARGE))
    caches = list(native.caches.values())
    assert caches and all(KEY in cache.steps and stack_of(cache) is not None for cache in caches)


@torch.no_grad()
def test_logits_are_those_of_transformers(engine: Engine, reference: Any) -> None:
    n = SMALL**2 + LARGE**2
    tokens = torch.randint(0, 64, (1, n), generator=torch.Generator().manual_seed(1))
    grids = torch.tensor([[1, LARGE, LARGE], [1, SMALL, SMALL]])
    prefix, _ = reference.model.get_rope_index(IDS, image_grid_thw=grids, images_per_sample=torch.tensor([2]))
    behind = reference.model._cached_decode_position_ids[0][:, : n - 1]
    positions = torch.cat([prefix[:, 0], behind], dim=1)[:, None]
    logits = reference(input_ids=torch.cat([IDS, tokens[:, :-1]], dim=1), position_ids=positions).logits
    wanted = logits[:, IDS.shape[1] - 1 :, :64]
    found = engine.family.ar(engine.family.conditioner.precomputed(IDS).features, tokens, LARGE)
    assert wanted.std() > 0.5
    assert (found - wanted).abs().max() <= 1e-4


def test_prompts_are_those_of_the_processor(glm_image_folder: Path) -> None:
    family = load_family(glm_image_folder, grids=(16, 32), prompt_length=20)
    processor = transformers.AutoProcessor.from_pretrained(glm_image_folder / "processor")
    features = family.condition(["a red apple"]).features
    for column, grid in enumerate((16, 32)):
        messages = [[{"role": "user", "content": [{"type": "text", "text": "a red apple"}]}]]
        ids = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"target_h": 32 * grid, "target_w": 32 * grid},
        )["input_ids"][0]  # fmt: skip
        row = features[0, :, column]
        assert torch.equal(row[row >= 0], ids)
    assert family.ar.layout(32).grids == (16, 32), "the processor asks for a small grid of 16x16"


@pytest.mark.parametrize(
    "decoder",
    [
        "jacobi",
        "jacobi:window=5",
        f"zipar:window={LARGE}",
        "mulo:tau=2:radius=0:pool=1:window=0",
        "mulo:tau=2:radius=0:pool=1:window=0:draft_guesses=3",
        f"mulo:tau=2:radius=0:pool=1:window={LARGE}:draft_window={SMALL}",
    ],
)
def test_exact_decoders_give_the_serial_image(engine: Engine, decoder: str) -> None:
    serial = drawn(engine, seed=7).tokens
    assert torch.equal(drawn(engine, decoder, seed=7).tokens, serial)


def test_the_small_grid_is_the_draft(engine: Engine) -> None:
    result = drawn(engine, "mulo:tau=0:radius=0:pool=1", sampling="temperature=0")
    assert result.stats[0].forwards == {"prefill": 1, "draft": SMALL**2 - 1, "verify": 1}
    condition = engine.family.conditioner.precomputed(IDS)
    tokens, model = torch.zeros(1, 0, dtype=torch.int64), engine.family.ar
    for _ in range(SMALL**2):
        more = torch.cat([tokens, tokens.new_zeros(1, 1)], dim=1)
        tokens = torch.cat([tokens, model(condition.features, more, LARGE)[:, -1:].argmax(dim=-1)], dim=1)
    enlarged = tokens.view(SMALL, SMALL).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(result.tokens[0], enlarged)


def test_more_pooled_codes_and_a_lower_tau_reject_less(engine: Engine) -> None:
    def rejected(tau: float, pool: int) -> float:
        [stats] = drawn(engine, f"mulo:tau={tau}:radius=0:pool={pool}:window=2", seed=3).stats
        assert stats.rejection is not None
        return stats.rejection

    assert rejected(0.05, 32) < rejected(0.05, 1)
    assert rejected(0.01, 4) < rejected(0.2, 4)


def test_a_learned_up_sampler_of_semantic_codes_takes_the_place_of_repetition(engine: Engine) -> None:
    from mulosd.engine.models.upsampler import LatentResampler, ResamplerConfig

    family = engine.family
    torch.manual_seed(3)
    family.resamplers[SMALL, LARGE] = LatentResampler(ResamplerConfig(SMALL, LARGE, 16, channels=8, blocks=1)).eval()
    try:
        found = drawn(engine, "mulo:tau=0:radius=0:pool=1:upsampler=latent", sampling="temperature=0").tokens
        other = drawn(engine, "mulo:tau=0:radius=0:pool=1", sampling="temperature=0").tokens
    finally:
        del family.resamplers[SMALL, LARGE]
    assert not torch.equal(found, other)


def test_images_do_not_depend_on_their_batch_or_on_static_steps(engine: Engine) -> None:
    decoders = ["serial", "zipar:window=2", "mulo:tau=0.02:radius=1:pool=4:window=2", "jacobi"]
    alone = [drawn(engine, decoder, seed=5).tokens[0] for decoder in decoders]
    condition = engine.family.conditioner.precomputed(IDS)
    for static in (False, True):
        other = Engine(engine.family, config=SchedulerConfig(static=static))
        numbers = [other.add_request("named", seed=5, decoder=d, features=condition) for d in decoders]
        found = {}
        while other.busy:
            found |= {u.request: u.tokens for u in other.step() if u.kind == "final"}
        for number, tokens in zip(numbers, alone, strict=True):
            assert torch.equal(found[number], tokens)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        ("draft-only", "writes one of 3x3 tokens before that of the image"),
        ("product", "writes one of 3x3 tokens before that of the image"),
        ("zipar:zero_kv=true", "draws one grid alone"),
        ("mulo:tau=0:radius=0:pool=1:rows_per_cycle=2", "leave rows_per_cycle"),
        ("mulo:tau=0:radius=0:pool=1:cascade=true", "leave rows_per_cycle and cascade out"),
    ],
)
def test_decoders_that_make_no_sense_are_refused_with_the_reason(engine: Engine, decoder: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        drawn(engine, decoder)


def test_an_image_without_its_small_grid_has_no_likelihood(engine: Engine) -> None:
    with pytest.raises(ValueError, match="stand behind another grid"):
        engine.nll(["a red apple"], torch.zeros(1, LARGE, LARGE, dtype=torch.int64))


def test_pixels_are_refused_where_there_are_none(engine: Engine) -> None:
    with pytest.raises(ValueError, match="upsampler=nearest"):
        drawn(engine, "mulo:tau=0:radius=0:pool=1:upsampler=pixel")


def test_false_colours_are_the_same_for_the_same_codes(engine: Engine) -> None:
    tokenizer = engine.family.tokenizer
    image = tokenizer.decode(torch.tensor([[[1, 2], [2, 1]]]))
    assert image.shape == (1, 3, 64, 64)
    assert torch.equal(image[..., :32, :32], image[..., 32:, 32:])
    assert not torch.equal(image[..., :32, :32], image[..., 32:, :32])
    assert bool((image.abs() <= 1).all())
