"""Same seed, same image: the tokens of every decoder on a stored tiny family, written once and compared ever since.

`python tests/engine/test_golden_tokens.py` writes the file anew; do that only where images are meant to change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mulosd.engine.decoding import parse
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams

FOLDER = Path(__file__).parent / "golden"
TOKENS = FOLDER / "tokens.npz"
PROMPTS = ["a red apple", "a blue pear and an apple"]
SAMPLING = SamplingParams(cfg_scale=2.0, temperature=0.9, top_k=20, top_p=0.95)
INTERVAL = SamplingParams(cfg_scale=2.0, temperature=0.9, cfg_interval=20)
MULO = "mulo:tau=0.05:radius=1:pool=1"
DECODERS = [
    "serial",
    "serial:grid=4",
    "draft-only:scale=2",
    "draft-only:scale=4:draft_guesses=4",
    "draft-only:scale=2:upsampler=pixel:draft_window=2",
    f"{MULO}:scale=2",
    f"{MULO}:scale=4",
    f"{MULO}:scale=2:window=2",
    f"{MULO}:scale=2:window=2:rows_per_cycle=4",
    f"{MULO}:scale=4:upsampler=pixel:draft_guesses=4",
    f"{MULO}:scale=2:rejection=naive",
    f"{MULO}:scale=2:rejection=raster:window=3",
    f"{MULO}:scale=4:cascade=true:window=2",
    f"{MULO}:scale=2:entropy_radius=0.5",
    "mulo:tau=0.2:radius=0:pool=3:scale=2:window=1:draft_window=2",
    "zipar:window=2",
    "zipar:window=5",
    "zipar:window=4:zero_kv=true",
    "jacobi:window=8",
    "jacobi:window=8:coupled=false",
    "eagle:depth=3:top_k=3:total=8",
    "eagle:depth=3:top_k=3:total=8:coupled=true",
    "eagle:depth=3:top_k=3:total=8:lantern_k=4",
]


def drawn(engine: Engine, decoder: str, sampling: SamplingParams = SAMPLING) -> np.ndarray:
    prompts = PROMPTS if engine.family.conditioner.kind == "phrases" else ["one", "two"]
    result = engine.generate(prompts, decoder=parse(decoder), sampling=sampling, seed=[3, 4])
    return result.tokens.numpy().astype(np.uint8)


@pytest.fixture(scope="module", params=["phrases", "classes"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(Family.load(FOLDER / request.param))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_seed_gives_the_tokens_that_it_always_gave(engine: Engine, decoder: str) -> None:
    with np.load(TOKENS) as golden:
        assert np.array_equal(drawn(engine, decoder), golden[f"{engine.family.conditioner.kind}/{decoder}"])


def test_a_guided_interval_gives_the_tokens_that_it_always_gave(engine: Engine) -> None:
    with np.load(TOKENS) as golden:
        wanted = golden[f"{engine.family.conditioner.kind}/interval"]
    assert np.array_equal(drawn(engine, "serial", INTERVAL), wanted)


def write() -> None:
    found = {}
    for kind, classes in (("phrases", ()), ("classes", ("one", "two", "three"))):
        if not (FOLDER / kind).exists():
            random_family(drafter=True, classes=classes, seed=1).save(FOLDER / kind)
        engine = Engine(Family.load(FOLDER / kind))
        for decoder in DECODERS:
            found[f"{kind}/{decoder}"] = drawn(engine, decoder)
        found[f"{kind}/interval"] = drawn(engine, "serial", INTERVAL)
    np.savez_compressed(TOKENS, **found)


if __name__ == "__main__":
    write()
