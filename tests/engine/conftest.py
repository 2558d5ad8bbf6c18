import pytest
import torch

from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams

PROMPTS = ["an apple", "red pear", "blue"]
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(cfg_scale=2.5),
    SamplingParams(cfg_scale=1.5, temperature=0.8, top_k=9, top_p=0.9),
]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A tiny random family in float32: grids 2, 4, 8."""
    torch.set_num_threads(1)
    return Engine(random_family())


@pytest.fixture(params=SAMPLINGS, ids=["plain", "cfg", "top-k"])
def sampling(request: pytest.FixtureRequest) -> SamplingParams:
    params: SamplingParams = request.param
    return params
