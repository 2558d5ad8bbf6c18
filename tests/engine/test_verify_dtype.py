"""A verify pass in a narrower type: only the pass is narrower, and only for those who asked."""

import pytest
import torch

from mulosd.engine.batch import Feed
from mulosd.engine.decoding import DraftOnly, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.models.linear import Linear
from mulosd.engine.request import Request, prefix
from mulosd.engine.runner import run
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import Scheduler

from .conftest import PROMPTS

NARROW = MuloSD(scale=2, tau=0.02, radius=1, pool=3, verify_dtype="bfloat16")
SAMPLING = SamplingParams(cfg_scale=2.0)


def fed_behind_prefix(engine: Engine, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 40 tokens in one pass, and the last layer's keys of their slots."""
    with torch.inference_mode():
        request = Request(engine.family, engine.family.features(["red apple"]), 0, SamplingParams())
        request.cache = Scheduler(engine.family).cache
        lane = request.lane(8)
        plan = prefix(lane)
        feeds = next(plan)
        with pytest.raises(StopIteration):
            plan.send(run(feeds))
        tokens = torch.arange(40) % engine.family.ar.config.vocab_size
        [result] = run([Feed(lane, tokens, range(40), role="verify", dtype=dtype)])
        keys = lane.cache.k[-1][lane.first_row, lane.cond_len : lane.cond_len + 40].clone()
        request.close()
    assert result.logits is not None
    return result.logits.cond, keys


def test_a_narrow_pass_differs_by_rounding_and_keeps_the_type_of_the_cache(engine: Engine) -> None:
    exact, keys = fed_behind_prefix(engine, None)
    narrow, narrow_keys = fed_behind_prefix(engine, torch.bfloat16)
    assert narrow.dtype == torch.float32 and narrow_keys.dtype == torch.float32
    error = (narrow - exact).abs().max() / exact.std()
    # bfloat16 keeps 8 bits: rounding shows, and stays a few of its steps.
    assert 1e-4 < float(error) < 0.1
    assert 1e-5 < float((narrow_keys - keys).abs().max() / keys.std()) < 0.1
    assert torch.equal(fed_behind_prefix(engine, torch.float32)[0], exact), "the engine's own type changes nothing"


def test_the_ends_of_tau_do_not_feel_the_type(engine: Engine) -> None:
    def tokens(decoder: object) -> torch.Tensor:
        return engine.generate("red apple", decoder=decoder, sampling=SAMPLING, seed=4).tokens  # type: ignore[arg-type]

    ends = {tau: MuloSD(scale=2, tau=tau, radius=1, pool=3, verify_dtype="bfloat16") for tau in (0.0, 2.0)}
    assert torch.equal(tokens(ends[0.0]), tokens(DraftOnly(scale=2)))
    assert torch.equal(tokens(ends[2.0]), tokens(Serial())), "every token is drawn anew, in the engine's type"


def test_requests_of_both_types_share_steps_without_touching_one_another(engine: Engine) -> None:
    wide = MuloSD(scale=2, tau=0.02, radius=1, pool=3)
    alone = engine.generate(PROMPTS[0], decoder=wide, sampling=SAMPLING, seed=1).tokens[0]
    numbers = {}
    for decoder in (wide, NARROW, Serial()):
        numbers[engine.add_request(PROMPTS[0], decoder=decoder, sampling=SAMPLING, seed=1)] = decoder
    found = {}
    while engine.busy:
        for update in engine.step():
            assert update.error is None
            if update.kind == "final":
                found[numbers[update.request]] = update.tokens
    assert torch.equal(found[wide], alone)
    assert torch.equal(
        found[Serial()], engine.generate(PROMPTS[0], decoder=Serial(), sampling=SAMPLING, seed=1).tokens[0]
    )


def test_the_narrow_copy_of_a_weight_follows_the_weight() -> None:
    layer = Linear(8, 4)
    x = torch.randn(16, 8).bfloat16()
    with torch.no_grad():
        before = layer(x)
        assert before.dtype == torch.bfloat16
        assert layer.narrowed(torch.bfloat16) is layer.narrowed(torch.bfloat16), "made once"
        layer.weight.mul_(2)
        assert torch.equal(layer(x), 2 * before)
    assert list(layer.state_dict()) == ["weight"], "the copy is not saved"


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        MuloSD(verify_dtype="int8")
