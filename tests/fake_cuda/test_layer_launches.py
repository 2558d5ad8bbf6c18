"""How many kernels a layer of a decoding step is, on the made-up device.

    OMP_NUM_THREADS=1 python -m pytest -s -q tests/fake_cuda/test_layer_launches.py

prints them, for docs/gpu.md.
"""

from __future__ import annotations

from collections import Counter
from unittest import mock

import pytest
from torch import Tensor

from mulosd.engine.decoding import Serial
from mulosd.engine.engine import Engine
from mulosd.engine.models import layers
from mulosd.engine.models.ar_model import ARModel
from mulosd.engine.models.layers import Attend
from mulosd.engine.scheduler import SchedulerConfig

from .device import FakeCuda
from .lanes import SAMPLING, text_family

STEPS = 3


def launches(*, few: int = layers.FEW_ROWS, triton: bool = True, quantization: str | None = None) -> Counter[str]:
    """Kernels a layer of a step of a guided request, by name."""
    found: Counter[str] = Counter()
    run = ARModel.run

    def counting(self: ARModel, x: Tensor, attend: Attend) -> Tensor:
        before = Counter(log.launches)
        out = run(self, x, attend)
        found.update(log.launches - before)
        return out

    with FakeCuda(triton=triton) as log, mock.patch.object(layers, "FEW_ROWS", few):
        config = SchedulerConfig(static=False)
        engine = Engine(text_family(), device="cuda", dtype="float32", config=config, quantization=quantization)
        engine.add_request("red pear", decoder=Serial(), sampling=SAMPLING)
        for _ in range(4):
            engine.step()
        with mock.patch.object(ARModel, "run", counting):
            for _ in range(STEPS):
                engine.step()
        assert log.sound(), log.summary()
        count = STEPS * engine.family.ar.config.n_layers
        engine.clear()
    print(sum(found.values()) / count, {name: n / count for name, n in found.items()})
    return Counter({name: n // count for name, n in found.items()})


@pytest.mark.parametrize("quantization", [None, "int8", "fp8"])
def test_a_layer_of_a_few_tokens_is_six_kernels(quantization: str | None) -> None:
    attention = {"mulosd::kv_write": 1, "mulosd::verify_attention": 1}
    assert launches(quantization=quantization) == attention | {"mulosd::fused_linear": 4}


def test_for_many_tokens_and_without_triton_every_part_is_a_kernel() -> None:
    apart = launches(few=0)
    assert sum(apart.values()) == 12
    assert launches(triton=False) == apart
