"""What the target accepts, by where the tokens come from."""

import numpy as np
import pytest
import torch

from mulosd.engine.decoding import DraftOnly, MuloSD, Serial
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.measure.acceptance import judged, measure_acceptance, share

PROMPTS = ["red apple", "a pear on blue", "blue", "apple and pear"]


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(random_family(sharpness=3.0))


def pictures(n: int) -> list[tuple[str, list[np.ndarray]]]:  # type: ignore[type-arg]
    rng = np.random.default_rng(0)
    return [("red pear", [rng.integers(255, size=(s, s, 3)).astype(np.uint8) for s in (8, 16)]) for _ in range(n)]


def test_drafts_are_accepted_as_decoding_accepts_them(engine: Engine) -> None:
    decoder = MuloSD(2, tau=0.02, radius=0, pool=2)
    report = measure_acceptance(engine, PROMPTS, decoder, images=pictures(3), seed=5)
    rows = {row["source"]: row for row in report["rows"]}
    assert list(rows) == ["own", "real", "real up-sampled", "draft"]
    assert {"device", "versions", "commit", "sampling"} <= report.keys() and report["seed"] == 5
    seeds = [5, 6, 7, 8]
    stats = engine.generate(PROMPTS, decoder=decoder, seed=seeds).stats
    rejection = np.mean([s.rejection for s in stats])
    assert 0.02 < rejection < 0.98
    assert rows["draft"]["accepted"]["value"] == pytest.approx(1 - rejection)
    for name, by in (("own", Serial()), ("draft", DraftOnly(2))):
        nll = engine.nll(PROMPTS, engine.generate(PROMPTS, decoder=by, seed=seeds).tokens)
        assert rows[name]["nll"]["value"] == pytest.approx(float(nll.mean()), rel=1e-4)
    # The target takes its own samples sooner than what it has not drawn.
    assert rows["own"]["accepted"]["value"] > rows["draft"]["accepted"]["value"]
    for row, count in (("own", 4), ("real", 3)):
        parts = [rows[row][k] for k in ("accepted", "foreground", "background")]
        assert parts[0]["tokens"] == parts[1]["tokens"] + parts[2]["tokens"] == 64 * count


def test_the_limits_of_tau(engine: Engine) -> None:
    tokens = engine.generate(PROMPTS, decoder=DraftOnly(2)).tokens
    for tau, share_of in ((0.0, 1.0), (1.5, 0.0)):
        row = judged(engine, PROMPTS, [0] * 4, tokens, MuloSD(2, tau, 0, 1), "draft", None)
        assert row["accepted"]["value"] == share_of
    zipar = measure_acceptance(engine, PROMPTS, MuloSD(2, 0.02, 0, 1, draft_window=1), sources=["draft"])
    windowed = engine.generate(PROMPTS, decoder=DraftOnly(2, draft_window=1), seed=[0, 1, 2, 3]).tokens
    assert not torch.equal(windowed, engine.generate(PROMPTS, decoder=DraftOnly(2), seed=[0, 1, 2, 3]).tokens)
    assert zipar["draft_window"] == 1
    assert zipar["rows"][0]["nll"]["value"] == pytest.approx(float(engine.nll(PROMPTS, windowed).mean()), rel=1e-4)
    only = measure_acceptance(engine, PROMPTS[:1], MuloSD(4, 0.1, 0, 1, "pixel"))
    assert [row["source"] for row in only["rows"]] == ["own", "draft"] and only["drafter_grid"] == 2
    with pytest.raises(ValueError, match="prompt"):
        measure_acceptance(engine, [], MuloSD(2, 0.1, 0, 1))


def test_a_share_counts_what_it_is_asked_about() -> None:
    stands = np.array([[True, True, False, False], [True, False, False, False]])
    among = np.array([[True, True, True, False], [False, False, False, True]])
    found = share(stands, among)
    assert found["value"] == 0.5 and found["tokens"] == 4 and found["ci95"][0] < 0.5 < found["ci95"][1]
    assert share(stands, np.zeros_like(stands)) == {"value": None, "ci95": None, "tokens": 0}
