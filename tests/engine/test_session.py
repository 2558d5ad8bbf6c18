"""The forward primitive against the definition, `Transformer.forward`."""

import torch

from mulosd.engine.engine import Engine
from mulosd.engine.session import Session
from mulosd.engine.stats import Recorder


def session_and_truth(engine: Engine, grid: int = 8) -> tuple[Session, torch.Tensor, torch.Tensor, torch.Tensor]:
    family = engine.family
    cond, uncond = family.features(["apple", "blue pear"]), family.null_features(2)
    tokens = torch.randint(24, (2, grid * grid), generator=torch.Generator().manual_seed(1))
    session = Session(family.ar, grid, cond, uncond, Recorder(), "test")
    return session, tokens, family.ar(cond, tokens, grid), family.ar(uncond, tokens, grid)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_one_pass_steps_and_chunks_equal_the_teacher_forced_logits(engine: Engine) -> None:
    for chunk in (63, 1, 7):
        session, tokens, cond, uncond = session_and_truth(engine)
        assert close(session.first.cond[:, 0], cond[:, 0])
        for start in range(0, 63, chunk):
            fed = session.feed(tokens[:, start : min(63, start + chunk)], start)
            assert fed is not None and fed.uncond is not None
            stop = start + fed.cond.shape[1]
            assert close(fed.cond, cond[:, start + 1 : stop + 1])
            assert close(fed.uncond, uncond[:, start + 1 : stop + 1])


@torch.inference_mode()
def test_ragged_positions_equal_consecutive_ones(engine: Engine) -> None:
    session, tokens, cond, _ = session_and_truth(engine)
    session.feed(tokens, 0)
    positions = torch.tensor([[5, 20, 40], [0, 33, 62]])
    fed = session.feed(tokens.gather(1, positions), positions)
    assert fed is not None
    for b in range(2):
        assert close(fed.cond[b], cond[b, positions[b] + 1])


@torch.inference_mode()
def test_an_overwritten_token_leaves_no_trace(engine: Engine) -> None:
    session, tokens, cond, _ = session_and_truth(engine)
    wrong = (tokens + 1) % 24
    session.feed(wrong, 0)
    clean, *_ = session_and_truth(engine)
    session.feed(tokens, 0)
    clean.feed(tokens, 0)
    for a, b in zip(session.k + session.v, clean.k + clean.v, strict=True):
        assert torch.equal(a, b)
    fed = session.feed(tokens[:, 9:10], 9)
    assert fed is not None and close(fed.cond[:, 0], cond[:, 10])


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
    prompts = ["apple", "blue"]
    logits = engine.family.ar(engine.family.features(prompts), tokens.flatten(1), 4).double()
    expected = -torch.log_softmax(logits, -1).gather(-1, tokens.flatten(1)[..., None])[..., 0].mean(1)
    assert torch.allclose(engine.nll(prompts, tokens).double(), expected, atol=1e-5)
