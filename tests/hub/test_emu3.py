"""Emu3-Gen against transformers' own classes: row ends, negative prompts, its tokenizer, and drafts of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mulosd.engine.batch import Feed
from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.engine import Engine
from mulosd.engine.row_ends import with_row_ends
from mulosd.engine.scheduler import SchedulerConfig

PROMPTS = ["a red apple on the table", "blue sky"]
GRID = 6


@pytest.fixture(scope="module")
def engine(emu3_folder: Path) -> Engine:
    return Engine.from_pretrained(emu3_folder, grids=(3, GRID), prompt_length=20)


@pytest.fixture(scope="module")
def reference(emu3_folder: Path) -> Any:
    return transformers.Emu3ForConditionalGeneration.from_pretrained(emu3_folder).eval()


def inputs(folder: Path, prompt: str, grid: int) -> Any:
    """What the processor makes of a prompt."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    found = processor(
        text=[prompt], return_for_image_generation=True, ratio="1:1", image_area=(8 * grid) ** 2, return_tensors="pt"
    )
    found.pop("image_sizes")
    return found


def codes_of(reference: Any, folder: Path, negative: str, prompt: str, grid: int, scale: float) -> torch.Tensor:
    """Codes [grid, grid] that transformers draws, with a row end forced behind each row."""
    given, other = inputs(folder, prompt, grid), inputs(folder, negative, grid)
    mapping, begin = reference.vocabulary_mapping, given["input_ids"].shape[1]

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return [mapping.eol_token_id] if (len(ids) - begin + 1) % (grid + 1) == 0 else mapping.image_tokens

    found = reference.generate(
        **given, max_new_tokens=grid * (grid + 1) - 1, do_sample=False, prefix_allowed_tokens_fn=allowed,
        guidance_scale=scale, negative_prompt_ids=other["input_ids"],
        negative_prompt_attention_mask=other["attention_mask"],
    )  # fmt: skip
    rows = torch.cat([found[0, begin:], torch.tensor([mapping.eol_token_id])]).view(1, grid, grid + 1)
    codes: torch.Tensor = mapping.convert_bpe2img(rows)[0].long()
    return codes


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_guided_images_are_those_of_transformers(
    engine: Engine, reference: Any, emu3_folder: Path, prompt: str
) -> None:
    negative = engine.family.conditioner.negative
    for grid in (3, GRID):
        wanted = codes_of(reference, emu3_folder, negative, prompt, grid, 3.0)
        found = engine.generate(prompt, decoder=f"serial:grid={grid}", sampling={"temperature": 0})
        assert len(wanted.unique()) > grid
        assert torch.equal(found.tokens[0], wanted)


@torch.no_grad()
def test_logits_are_those_of_transformers(engine: Engine, reference: Any, emu3_folder: Path) -> None:
    codes = torch.randint(0, 64, (1, GRID, GRID), generator=torch.Generator().manual_seed(1))
    mapping = reference.vocabulary_mapping
    prefix = inputs(emu3_folder, PROMPTS[0], GRID)["input_ids"]
    rows = torch.stack([mapping.convert_img2bpe(row[None])[0] for row in codes[0]]).flatten()[None]
    logits = reference(input_ids=torch.cat([prefix, rows[:, :-1]], dim=1)).logits[0, prefix.shape[1] - 1 :]
    ids = torch.tensor([mapping.img2bpe[code] for code in range(64)])
    drawn = [slot for slot in range(GRID * (GRID + 1) - 1) if slot % (GRID + 1) != GRID]
    wanted = logits[drawn][:, ids]
    found = engine.family.ar(engine.family.condition([PROMPTS[0]]).features, codes.view(1, -1), GRID)[0]
    assert wanted.std() > 0.5
    assert (found - wanted).abs().max() <= 1e-4


@torch.no_grad()
def test_pixels_and_codes_are_those_of_transformers(engine: Engine, reference: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 64, (2, 4, 4), generator=generator)
    wanted = reference.model.vqmodel.decode(codes)
    found = engine.family.tokenizer.decode(codes)
    assert wanted.std() > 0.01
    assert (found - wanted).abs().max() <= 1e-4
    images = torch.rand(3, 3, 48, 48, generator=generator) * 2 - 1
    sizes = torch.tensor([[48, 48]] * 3)
    tokens = torch.stack(list(reference.model.vqmodel.encode(images, sizes).image_tokens))
    assert len(tokens.unique()) > 2
    assert torch.equal(engine.family.tokenizer.encode(images), tokens)


def test_neighbours_are_the_codes_at_the_least_distance(engine: Engine) -> None:
    codes = engine.family.tokenizer.codebook
    table = engine.family.neighbours(5)
    assert table.dtype == torch.int32
    assert torch.equal(table[:, 0].long(), torch.arange(64)), "each code itself first"
    distance = torch.cdist(codes.double(), codes.double())
    wanted = distance.sort(dim=1).values[:, :5]
    assert torch.allclose(distance.gather(1, table.long()), wanted)


@pytest.mark.parametrize("decoder", ["jacobi", f"zipar:window={GRID}", "jacobi:window=5"])
def test_exact_decoders_give_the_serial_image(engine: Engine, decoder: str) -> None:
    wanted = engine.generate(PROMPTS[0], seed=7).tokens
    assert torch.equal(engine.generate(PROMPTS[0], seed=7, decoder=decoder).tokens, wanted)


def test_a_row_end_takes_no_forward_of_its_own(engine: Engine) -> None:
    [stats] = engine.generate(PROMPTS[0]).stats
    assert stats.forwards["serial"] == GRID * GRID - 1
    [stats] = engine.generate(PROMPTS[0], decoder="zipar:window=2").stats
    assert stats.forwards["zipar"] == GRID + 2 * (GRID - 1) - 1


def test_images_do_not_depend_on_their_batch_or_on_static_steps(engine: Engine) -> None:
    decoders = ["serial", "zipar:window=2", "mulo:tau=0.02:radius=1:pool=4:window=2"]
    alone = [engine.generate(p, seed=5, decoder=d).tokens[0] for p in PROMPTS for d in decoders]
    for static in (False, True):
        other = Engine(engine.family, config=SchedulerConfig(static=static))
        numbers = [other.add_request(p, seed=5, decoder=d) for p in PROMPTS for d in decoders]
        found = {}
        while other.busy:
            found |= {u.request: u.tokens for u in other.step() if u.kind == "final"}
        for number, tokens in zip(numbers, alone, strict=True):
            assert torch.equal(found[number], tokens)


def test_drafts_of_the_small_grid_are_verified_on_the_large_one(engine: Engine) -> None:
    serial = engine.generate(PROMPTS[0], seed=9).tokens
    none = engine.generate(PROMPTS[0], seed=9, decoder="mulo:tau=2:radius=0:pool=1:window=0")
    assert torch.equal(none.tokens, serial), "with nothing accepted it is serial decoding"
    [stats] = engine.generate(PROMPTS[0], seed=9, decoder="mulo:tau=0:radius=0:pool=1").stats
    assert stats.forwards == {"prefill": 2, "draft": 8, "verify": 1}


def test_token_ids_take_the_place_of_the_processor(emu3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for file in emu3_folder.glob("*"):
        if not file.name.startswith(("tokenizer", "processor", "chat")):
            (folder / file.name).symlink_to(file)
    bare = Engine.from_pretrained(folder, grids=(3,), prompt_length=20)
    ids = inputs(emu3_folder, PROMPTS[0], 3)["input_ids"]
    condition = bare.family.conditioner.precomputed(ids)
    found = bare.generate("named", features=condition, sampling="cfg_scale=1", seed=4).tokens
    whole = Engine.from_pretrained(emu3_folder, grids=(3,), prompt_length=20)
    assert torch.equal(found, whole.generate(PROMPTS[0], sampling="cfg_scale=1", seed=4).tokens)
    with pytest.raises(ValueError, match="holds no processor"):
        bare.generate(PROMPTS[0])


def lane_of(engine: Engine) -> Lane:
    features = engine.family.condition([PROMPTS[0]]).features
    return Lane(KVCache(engine.family.ar, GRID), features)


def test_what_is_fed_for_positions(engine: Engine) -> None:
    lane = lane_of(engine)
    tokens = torch.arange(GRID * GRID) % 60
    inside = with_row_ends(Feed(lane, tokens, range(8, 9), sources=range(8, 9)))
    assert (list(inside.positions), inside.values().tolist(), inside.logits) == ([9], [8], "all")
    last = with_row_ends(Feed(lane, tokens, range(5, 6), sources=range(5, 6)))
    assert (list(last.positions), last.values().tolist(), last.logits) == ([5, 6], [5, 64], [1])
    across = with_row_ends(Feed(lane, tokens, [4, 5, 6, 30], sources=[4, 5, 6, 30]))
    assert list(across.positions) == [4, 5, 6, 7, 35]
    assert across.values().tolist() == [4, 5, 64, 6, 30]
    assert across.logits == [0, 2, 3, 4]
    alone = with_row_ends(Feed(lane, tokens, [5, 8], [0], sources=[0, 8], ends={5}))
    assert (list(alone.positions), alone.values().tolist(), alone.logits) == ([6, 9], [64, 8], [0])
    end = with_row_ends(Feed(lane, tokens, range(34, 36), "none", sources=range(34, 36)))
    assert (list(end.positions), list(end.logits)) == ([39, 40], []), "nothing follows the last row"


def test_hidden_positions_take_their_row_ends_with_them(engine: Engine) -> None:
    lane = lane_of(engine)
    before = lane.valid.clone() if lane.valid is not None else torch.ones(lane.cache.slots, dtype=torch.bool)
    lane.hide([4, 5])
    assert lane.valid is not None
    assert (lane.valid != before).nonzero().flatten().tolist() == [lane.cond_len + s for s in (4, 5, 6)]
    lane.show_ends([5])
    assert (lane.valid != before).nonzero().flatten().tolist() == [lane.cond_len + s for s in (4, 5)]
    lane.show([4, 5])
    assert torch.equal(lane.valid, before)


def test_what_cannot_be_drawn_is_refused_with_the_reason(engine: Engine, emu3_folder: Path) -> None:
    with pytest.raises(ValueError, match="knows no row ends"):
        engine.generate("a", decoder="zipar:zero_kv=true")
    from mulosd.engine.decoding.base import OneGrid

    class Rows(OneGrid):
        name = "rows"
        grid = None

        def resolve(self, family: Any) -> Any:
            return self

    with pytest.raises(ValueError, match="knows no tokens at the ends of rows"):
        engine.generate("a", decoder=Rows())
