"""Logits that are not finite on a GPU: no step waits to look for them, and the request fails all the same."""

from __future__ import annotations

import math

import pytest
import torch

from mulosd.engine.decoding import Decoder, Eagle, Lantern
from mulosd.engine.engine import Engine
from mulosd.engine.sampling import SamplingParams
from mulosd.kernels.local_resample import local_resample
from mulosd.kernels.sampling import processed_logits

from .device import FakeCuda
from .lanes import DECODERS, SAMPLING, text_family

GREEDY = SAMPLING.changed("temperature=0")
RELAXED = Eagle(depth=3, top_k=3, total=8, grid=4, relaxed=Lantern(k=3, delta=0.1))


@pytest.mark.parametrize(
    ("decoder", "sampling", "part", "steps"),
    [
        (DECODERS["eagle"], SAMPLING, "drafter", 0),
        (DECODERS["eagle"], SAMPLING, "model", 6),
        (RELAXED, GREEDY, "drafter", 0),
        (RELAXED, GREEDY, "model", 6),
        (DECODERS["jacobi, independent"], SAMPLING, "model", 4),
    ],
)
def test_a_request_fails_where_weights_go_bad(
    decoder: Decoder, sampling: SamplingParams, part: str, steps: int
) -> None:
    with FakeCuda() as log:
        engine = Engine(text_family(), device="cuda", dtype="float32")
        number = engine.add_request("apple", decoder=decoder, sampling=sampling)
        for _ in range(steps):
            engine.step()
        family = engine.family
        broken = family.eagle_drafter(4) if part == "drafter" else family.ar
        for parameter in broken.parameters():
            parameter.data.fill_(math.nan)
        updates = []
        while engine.busy:
            updates += engine.step()
        [error] = [update.error for update in updates if update.request == number]
        assert isinstance(error, ValueError) and "NaN or infinite logits" in str(error)
        assert log.sound(), log.summary()


@pytest.mark.parametrize("value", [[0.0, math.nan], [-math.inf, -math.inf], [0.0, math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (2, 0.5)])
def test_a_row_is_marked_and_not_waited_for(value: list[float], temperature: float, top_k: int, top_p: float) -> None:
    good = [0.0, 1.0]
    with FakeCuda() as log:
        rows = torch.tensor([good, value, good]).to("cuda")
        noise = torch.zeros(3, 2).to("cuda")
        log.reset()
        p = processed_logits(rows, None, 1.0, temperature, top_k, top_p).softmax(dim=-1)
        drawn = local_resample(rows, None, noise, temperature=temperature, top_k=top_k, top_p=top_p, backend="torch")
        assert not log.waits
        p, drawn = p.cpu(), drawn.cpu()
    assert p[1].isnan().all() and p[[0, 2]].isfinite().all()
    assert drawn.tolist() == [1, -1, 1]
