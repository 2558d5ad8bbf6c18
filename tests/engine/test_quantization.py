"""Layers of 8-bit weights: errors within what the step of the quantisation allows, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.memory import plan_memory
from mulosd.engine.models import quantized
from mulosd.engine.models.quantized import KINDS, QuantizedLinear, check_device, quantised
from mulosd.engine.models.transformer import Transformer
from mulosd.engine.random_family import random_family
from mulosd.engine.scheduler import SchedulerConfig

# bfloat16 keeps 8 bits: what is rounded to it is off by at most this share.
BF16 = 2.0**-8


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(weight: Tensor, scale: Tensor, kind: str) -> Tensor:
    """The most that each weight may be off by."""
    half = scale[:, None].expand_as(weight)
    return half / 2 if kind == "int8" else torch.maximum(weight.abs() / 16, half / 1024)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_off_by_no_more_than_half_a_step(kind: str) -> None:
    weight = rand(33, 70) * torch.logspace(-20, 3, 33)[:, None]
    weight[5], weight[6, 0] = 0, 1e4  # nothing, and one that makes all others small
    values, scale = quantised(weight, kind)
    assert values.dtype == KINDS[kind][0] and scale.dtype == torch.float32
    back = values.float() * scale[:, None]
    assert ((back - weight).abs() <= step(weight, scale, kind) * (1 + 1e-6)).all()
    largest = weight.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(back.gather(1, largest), weight.gather(1, largest))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 16, 17])
@pytest.mark.parametrize("width", [64, 50])
def test_a_layer_is_off_by_no_more_than_its_weights_and_the_types_allow(kind: str, rows: int, width: int) -> None:
    linear = nn.Linear(width, 40)
    layer, x = QuantizedLinear(linear, kind), rand(rows, width, seed=1)
    with torch.no_grad():
        exact, out = linear(x), layer(x)
        allowed = x.abs() @ step(linear.weight, layer.scale, kind).T
        if kind == "int8":  # a CPU may round inputs and sums to bfloat16
            allowed += BF16 * (x.abs() @ (linear.weight.abs() + layer.scale[:, None]).T + exact.abs() + allowed)
    assert ((out - exact).abs() <= allowed + 1e-5).all()
    assert (out - exact).abs().max() > 0


@pytest.mark.parametrize("rows", [4, 20])
def test_every_way_to_multiply_gives_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedLinear(nn.Linear(64, 40, bias=False), "int8")
    x = rand(rows, 64, seed=2).bfloat16().float()
    found = []
    for packed, narrow in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(quantized, "multiplies_int8", lambda on=packed: on)
        monkeypatch.setattr(quantized, "multiplies_bfloat16", lambda on=narrow: on)
        with torch.no_grad():
            found.append(layer(x))
    for out in found[:2]:
        torch.testing.assert_close(out, found[2], atol=1e-5, rtol=BF16)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_off_by_what_the_steps_predict(kind: str) -> None:
    """Rounding is noise of a known spread: a step s of int8 is uniform, of variance s^2 / 12, a relative one likewise.
    Through the gradient of the logits it gives their error to first order, without a figure that is measured."""
    family = random_family(grids=(4,), sharpness=1.0)
    model, tokens = family.ar, torch.arange(16)[None] % family.ar.config.vocab_size
    cond = family.condition(["apple"]).features.clone()
    directions = rand(4, *model(cond, tokens, 4).shape[1:], seed=3)
    weights = [p for b in model.blocks for p in (b.wqkv.weight, b.wo.weight, b.w13.weight, b.w2.weight)]
    for weight in weights:
        weight.requires_grad_(True)
    exact = model(cond, tokens, 4)[0]
    spread = []
    for direction in directions:
        found = torch.autograd.grad((direction * exact).sum(), weights, retain_graph=True)
        variance = 0.0
        for weight, gradient in zip(weights, found, strict=True):
            _, scale = quantised(weight, kind)
            # A float of three bits has steps of 1/8 of the power of two below it.
            magnitude = (weight.detach().abs() / scale[:, None]).clamp(min=2.0**-6)
            unit = torch.ones_like(weight) if kind == "int8" else 2.0 ** (magnitude.log2().floor() - 3)
            variance += float((gradient * unit * scale[:, None]).square().sum()) / 12
        spread.append(variance**0.5)
    off = []
    quantised_model = random_family(grids=(4,), sharpness=1.0).quantize(kind).ar
    with torch.no_grad():
        difference = quantised_model(cond, tokens, 4)[0] - exact
        off = [float((direction * difference).sum()) for direction in directions]
    ratios = torch.tensor(off) / torch.tensor(spread)
    assert ratios.abs().max() < 5, ratios  # of four draws of a normal, one in 400,000 has such a one
    assert ratios.abs().max() > 0.05, ratios


def layers_of(model: Transformer) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]


def test_the_layers_are_quantised_and_nothing_else(tmp_path: Path) -> None:
    family = random_family(drafter=True)
    engine = Engine(family, dtype="bfloat16", quantization="int8")
    assert all(len(layers_of(model)) == 8 for model in family.models)  # type: ignore[arg-type]
    assert family.eagle is not None and len(layers_of(family.eagle)) == 4  # type: ignore[arg-type]
    layer = family.ar.blocks[0].wqkv
    assert layer.weight.dtype == torch.int8 and layer.scale.dtype == torch.float32  # type: ignore[union-attr]
    assert family.ar.output.weight.dtype == family.ar.norm.weight.dtype == torch.bfloat16
    image = engine.generate("apple", decoder="serial", sampling="cfg_scale=3").tokens
    assert torch.equal(image, engine.generate("apple", decoder="serial", sampling="cfg_scale=3").tokens)
    with pytest.raises(ValueError, match="quantised to int8, of which folders hold nothing"):
        family.save(tmp_path / "f")
    with pytest.raises(ValueError, match="load it again for fp8"):
        family.quantize("fp8")


@pytest.mark.parametrize(
    "decoder", ["mulo:scale=2:tau=0.2:radius=1:pool=3", "zipar:window=2", "eagle:depth=2:top_k=2:total=4"]
)
def test_every_kind_of_decoder_runs_on_quantised_layers(decoder: str) -> None:
    made = Engine(random_family(drafter=True), quantization="int8").generate("apple", decoder=decoder, seed=1)
    assert made.tokens.shape == (1, 8, 8)


def test_memory_counts_bytes_and_a_budget_of_keys_is_as_before(tmp_path: Path) -> None:
    folder = random_family().save(tmp_path / "f")
    plain = Family.load(folder, weights=False)
    small = Family.load(folder, weights=False).quantize("int8")
    saved = 0
    for model in plain.models:
        for block in model.blocks:
            for linear in (block.wqkv, block.wo, block.w13, block.w2):  # type: ignore[union-attr]
                saved += linear.weight.numel() * (2 - 1) - linear.out_features * 4  # type: ignore[union-attr, operator]
    before, after = plan_memory(plain, torch.bfloat16), plan_memory(small, torch.bfloat16)
    assert before.weights - after.weights == saved > 0
    assert (before.kv, before.request, before.working) == (after.kv, after.request, after.working)
    loaded = Family.load(folder, dtype=torch.bfloat16).quantize("int8").to("cpu", torch.bfloat16)
    held = sum(t.numel() * t.itemsize for module in loaded._parts().values() for t in module.state_dict().values())
    assert held == after.weights
    scheduler = Engine(loaded, dtype="bfloat16", config=SchedulerConfig(kv_budget=1 << 20)).scheduler
    assert scheduler._bytes_per_row((8, False)) * 2 == after.kv[8]


def test_combinations_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8, fp8 or none, got 'int4'"):
        Engine(random_family(), quantization="int4")
    with pytest.raises(ValueError, match="'fp8' needs a GPU from sm_89 on"):
        Engine.from_pretrained(tmp_path, quantization="fp8")
    gpu = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    with pytest.raises(ValueError, match="is sm_86: use 'int8'"):
        check_device("fp8", gpu)  # type: ignore[arg-type]
    check_device("int8", gpu)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    check_device("fp8", gpu)  # type: ignore[arg-type]
