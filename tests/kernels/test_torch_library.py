"""The ops as torch.library knows them: schemas tell the truth, fakes have the right shapes, compiled code agrees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mulosd import kernels
from mulosd.kernels.registry import OP_MODULES, OPS, diagnose

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def samples() -> list[tuple[str, tuple[Any, ...]]]:
    """Arguments of every registered op, optional ones given and left out."""
    slots = torch.tensor([[3, 1], [0, 4]])
    cache = rand(2, 6, 2, 8)
    table = rand(6, 4, 2)
    valid = torch.ones(2, 6, dtype=torch.bool)
    logits, tokens = rand(3, 7), torch.tensor([0, 6, 2])
    neighbours = kernels.neighbours(rand(7, 4), 3)
    words, used = torch.tensor([[[3], [2]]], dtype=torch.int32), torch.tensor([2, 1])
    seeds = torch.tensor([1, 2, 3])
    return [
        (
            "verify_attention",
            (rand(2, 2, 4, 8), cache, cache + 1, slots, valid, 6, None, None, *[None] * 2, False, None),
        ),
        ("verify_attention", (rand(2, 2, 2, 8), cache, cache + 1, slots, None, 6, 4, 0.3, *[None] * 2, True, 1)),
        (
            "verify_attention",
            (rand(2, 2, 2, 8), cache, cache + 1, slots, valid, 1, None, None, words, used, True, None),
        ),
        ("kv_write", (rand(2, 2, 2, 8), rand(2, 2, 2, 8), rand(2, 2, 2, 8), slots, table, cache, cache + 1, None)),
        ("kv_write", (rand(2, 2, 2, 8), rand(2, 2, 2, 8), rand(2, 2, 2, 8), slots, None, cache, cache + 1, 2)),
        ("fused_linear", (rand(2, 3, 8), rand(6, 8), None, None, rand(8), 1e-5, True, rand(2, 3, 3))),
        ("fused_linear", (rand(3, 8), rand(6, 8).char(), rand(6), rand(6), None, 1e-5, False, None)),
        ("local_resample", (logits, logits + 1, None, 2.0, 0.9, 3, 0.8, seeds, seeds, 0)),
        ("local_resample", (logits, None, rand(3, 7), 1.0, 1.0, 0, 1.0, None, None, 0)),
        ("pooled_mass", (logits, None, tokens, neighbours, 0.1, 1.0, 1.0, 0, 1.0)),
        ("nearest_code", (rand(2, 16, 3, 5), rand(7, 4), 2, None)),
        ("nearest_code", (rand(2, 4, 3, 5), rand(7, 4), 1, neighbours)),
        ("expand_islands", (rand(1, 5, 6) > 1, 1, 2)),
        ("expand_islands", (rand(2, 5, 6) > 1, 0, None)),
    ]


def test_every_op_is_registered_and_sampled() -> None:
    diagnose()
    assert len(OP_MODULES) == 7
    # It takes the layers of a model, not tensors alone: no operator of torch, and in no compiled region.
    operators = {name: op for name, op in OPS.items() if name != "decode_layers"}
    assert {name for name, _ in samples()} == set(operators)
    assert all(op.schema for op in operators.values())


@pytest.mark.parametrize(("name", "args"), samples())
def test_opcheck(name: str, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.mulosd, name).default, args, test_utils=CHECKS)


def test_a_compiled_region_keeps_the_ops_and_agrees() -> None:
    slots = torch.tensor([[0, 1, 2]])

    def step(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        turned = kernels.kv_write(q, k, v, slots, None, keys, values, start=0) * 1.0
        out = kernels.verify_attention(turned, keys, values, slots, kv_len=3, start=0)
        logits = out.flatten(2)[0] @ rand(16, 11)
        token = kernels.local_resample(logits, gumbel=rand(3, 11, seed=1), top_k=5)
        mass = kernels.pooled_mass(logits, None, token, kernels.neighbours(rand(11, 4), 2), tau=0.1)
        return out, token, mass.mass

    inputs = [rand(1, 3, 2, 8, seed=i) for i in range(3)]
    eager_caches = [torch.zeros(1, 4, 2, 8) for _ in range(2)]
    compiled_caches = [c.clone() for c in eager_caches]
    expected = step(*inputs, *eager_caches)
    names: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    got = torch.compile(step, backend=keep, fullgraph=False)(*inputs, *compiled_caches)
    for a, b in zip((*expected, *eager_caches), (*got, *compiled_caches), strict=True):
        torch.testing.assert_close(a, b)
    for name in ("kv_write", "verify_attention", "local_resample", "pooled_mass"):
        assert any(f"mulosd.{name}" in n for n in names), names
