"""How a CPU multiplies: every way gives the product, the choice is by times that are kept, and tokens stay the same."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mulosd.engine.models.linear as linear_module
import mulosd.engine.models.quantized as quantized_module
from mulosd.engine import host_step, linear_choice
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.linear_choice import Shape, Times, checked_linear, choose, fastest, keep, kept_file, read_kept
from mulosd.engine.models.layers import project
from mulosd.engine.models.linear import CLASS_ROWS, FEW_CLASSES, Linear, has_onednn, row_class
from mulosd.engine.models.quantized import QuantizedLinear
from mulosd.engine.sampling import SamplingParams
from mulosd.kernels import host
from mulosd.kernels.decode_layers import OP as DECODE_LAYERS
from mulosd.kernels.decode_layers import Call

GOLDEN = Path(__file__).parent / "golden"
SAMPLING = SamplingParams(cfg_scale=2.0, temperature=0.9, top_k=20, top_p=0.95)
needs_native = pytest.mark.skipif(host.unusable() is not None, reason=str(host.unusable()))
WAYS = [
    "left",
    pytest.param("onednn", marks=pytest.mark.skipif(not has_onednn(), reason="torch without oneDNN")),
    pytest.param("native", marks=needs_native),
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(linear_choice.FOLDER_ENVIRONMENT, str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_classes_of_rows_hold_the_rows_that_they_are_measured_with() -> None:
    assert [row_class(rows) for rows in CLASS_ROWS] == list(range(len(CLASS_ROWS)))
    assert [row_class(n) for n in (3, 5, 16, 17, 1 << 20)] == [2, 3, 3, 4, len(CLASS_ROWS) - 1]
    assert row_class(host.MOST_ROWS) == FEW_CLASSES - 1 < row_class(host.MOST_ROWS + 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_every_way_is_the_product(way: str, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(64, 48, bias=bias)
    x = torch.randn(rows, 1, 64)
    narrow_way = "torch" if way == "onednn" and not has_onednn(torch.bfloat16) else way
    layer.ways = {torch.float32: (way,) * len(CLASS_ROWS), torch.bfloat16: (narrow_way,) * len(CLASS_ROWS)}
    with torch.inference_mode():
        found = layer(x)
        assert found.shape == (rows, 1, 48) and found.is_contiguous()
        torch.testing.assert_close(found, F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
        # An input of another type is multiplied in that type.
        narrow = layer(x.bfloat16())
        assert narrow.dtype == torch.bfloat16
        torch.testing.assert_close(narrow.float(), found, atol=3e-2, rtol=3e-2)
    assert layer(x).requires_grad


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_weight_is_the_one_that_is_multiplied_by(way: str) -> None:
    layer = Linear(32, 16)
    layer.ways = {torch.float32: (way,) * len(CLASS_ROWS)}
    x = torch.randn(2, 32)
    with torch.no_grad():
        layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight), atol=1e-5, rtol=1e-5)
        layer.weight.data = torch.randn(16, 32)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight), atol=1e-5, rtol=1e-5)


@needs_native
def test_quantised_weights_are_multiplied_as_they_are() -> None:
    torch.manual_seed(0)
    small = QuantizedLinear(Linear(64, 48, bias=True), "int8")
    small.ways = {torch.float32: ("native",) * FEW_CLASSES + ("torch",) * (len(CLASS_ROWS) - FEW_CLASSES)}
    x = torch.randn(3, 64)
    with torch.inference_mode():
        exact = F.linear(x, small.weight.float() * small.scale[:, None], small.bias)
        torch.testing.assert_close(small(x), exact, atol=1e-5, rtol=1e-5)
        added = torch.randn(3, 48)
        torch.testing.assert_close(project(x, small, residual=added), added + exact, atol=1e-5, rtol=1e-5)


def test_only_what_is_clearly_faster_takes_the_place_of_torch() -> None:
    assert fastest({"torch": 100.0, "native": 91.0}) == "torch"
    assert fastest({"torch": 100.0, "native": 89.0, "left": 95.0}) == "native"
    assert fastest({"torch": 100.0, "native": 80.0, "onednn": 70.0}) == "onednn"
    assert fastest({}) == "torch"
    assert Times([{"torch": 9.0, "onednn": 1.0, "left": 2.0}]).ways(packs=False) == ("left",)


def test_a_cpu_that_lacks_products_of_bfloat16_widens_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses to pack them on CPUs with AVX2 alone, and multiplies them by a plain loop."""
    for module in (linear_module, quantized_module):
        monkeypatch.setattr(module, "multiplies", lambda dtype: dtype != torch.bfloat16)
    assert has_onednn() and not has_onednn(torch.bfloat16)
    torch.manual_seed(0)
    layer = Linear(32, 16, bias=True)
    assert "onednn" not in linear_choice.candidates(layer, torch.bfloat16, 64)
    assert linear_choice.fixed("onednn", layer, torch.bfloat16) == ("torch",) * len(CLASS_ROWS)
    x = torch.randn(64, 32).bfloat16()
    with torch.inference_mode():
        exact = F.linear(x.float(), layer.weight, layer.bias).bfloat16()
        assert torch.equal(layer(x), exact)  # rounded once; in bfloat16 the weights would be rounded too
        assert not torch.equal(F.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16()), exact)
        small = QuantizedLinear(layer, "int8")
        assert torch.equal(small(x), small(x.float()).bfloat16())


def test_cpus_of_one_name_have_times_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines call CPUs of several generations by one name."""
    text = "model name : EPYC\ncpu family : 25\nmodel : 1\nflags : fpu avx2{}\n\nmodel name : other\n"
    files = []
    for more in ("", " avx512f"):
        monkeypatch.setattr(linear_choice.Path, "read_text", lambda _, more=more: text.format(more))
        files.append(kept_file())
        assert linear_choice.processor().startswith("EPYC 25 1 ")
    assert files[0] != files[1]


def small_family() -> Family:
    return Family.load(GOLDEN / "phrases")


def test_times_are_measured_once_and_then_read(monkeypatch: pytest.MonkeyPatch, own_folder: Path) -> None:
    monkeypatch.setattr(linear_choice, "BUDGET", 0.0)
    monkeypatch.setattr(linear_choice, "LAYER_BUDGET", 0.0)
    model = small_family().models[0]
    # A clock that the machine's other work does not reach.
    ticks = itertools.count()
    monkeypatch.setattr(linear_choice.time, "perf_counter", lambda: 0.001 * next(ticks))
    first = choose([model], "auto")
    assert len(list(own_folder.iterdir())) == 1
    assert {len(t.classes) for name, t in first.items() if not name.startswith("layer")} == {len(CLASS_ROWS)}
    assert all("torch" in times for t in first.values() for times in t.classes)

    def forbidden(*_: object) -> Times:
        raise AssertionError("measured again")

    monkeypatch.setattr(linear_choice, "timed", forbidden)
    ways = [layer.ways for layer in linear_choice.layers_of(model)]
    other = small_family().models[0]
    assert choose([other], "auto") == first
    assert [layer.ways for layer in linear_choice.layers_of(other)] == ways


def test_times_that_were_seen_once_are_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine so busy that no time comes twice F.linear serves, and the next process measures again."""
    ticks = itertools.accumulate(2.0**-i for i in itertools.count())
    monkeypatch.setattr(linear_choice.time, "perf_counter", lambda: next(ticks))
    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"torch": torch.neg, "native": torch.neg}
    assert linear_choice.timed(calls, torch.ones(1), 1e-9) == {}
    found = {"a": Times([{}, *[{"torch": 1.0}] * (len(CLASS_ROWS) - 1)])}
    assert keep(kept_file(), found)["a"] == found["a"].classes
    assert read_kept(kept_file()) == {}


def test_the_first_process_decides() -> None:
    shape = Shape("float32", "float32", 32, 16).name
    mine, theirs = ([{"torch": t, "left": 1.0}] * len(CLASS_ROWS) for t in (1.0, 9.0))
    keep(kept_file(), {shape: Times(theirs)})
    assert keep(kept_file(), {shape: Times(mine)})[shape] == theirs
    assert read_kept(kept_file())[shape] == theirs


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": {}, "shapes": {}}', "KEY", "\x00"])
def test_a_broken_file_is_left_out_with_a_word(content: str) -> None:
    file = kept_file()
    file.parent.mkdir()
    broken = json.dumps({"key": linear_choice.key(), "shapes": {"a": [{"torch": "x"}]}})
    file.write_text(broken if content == "KEY" else content)
    with pytest.warns(UserWarning, match="is broken and left out"):
        assert read_kept(file) == {}


def test_a_folder_that_cannot_be_written_to_costs_the_file_alone(own_folder: Path) -> None:
    own_folder.write_text("a file, not a folder")
    found = {"a": Times([{"torch": 1.0}] * len(CLASS_ROWS))}
    with pytest.warns(UserWarning, match="measures them|is broken"):
        assert keep(own_folder / "linear.json", found)["a"] == found["a"].classes


def test_what_cannot_be_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="linear must be one of auto, torch, left, onednn, native, got 'fast'"):
        Engine.from_pretrained("emoji", linear="fast")
    monkeypatch.setenv(linear_choice.ENVIRONMENT, "left")
    assert checked_linear(None) == "left"
    assert checked_linear("torch") == "torch"
    monkeypatch.setattr(host, "unusable", lambda: "not built")
    with pytest.raises(ValueError, match="linear='native' is not possible: not built"):
        checked_linear("native")


@pytest.mark.parametrize("decoder", ["serial", "mulo:tau=0.05:radius=1:pool=1:scale=2:window=2", "zipar:window=2"])
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_those_of_torch(decoder: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    whole = host_step.run_layers

    def counted(*arguments: object) -> object:
        out = whole(*arguments)  # type: ignore[arg-type]
        calls["layers" if out is not None else "parts"] += 1
        return out

    monkeypatch.setattr(host_step, "run_layers", counted)
    tokens = []
    for option in ("torch", way):
        engine = Engine(small_family(), linear=option)
        prompts = ["a red apple", "a blue pear and an apple"]
        tokens.append(engine.generate(prompts, decoder=decoder, sampling=SAMPLING, seed=[3, 4]).tokens)
        if option == "torch":
            assert calls["layers"] == 0
    assert torch.equal(*tokens)
    assert (calls["layers"] > 10) == (way == "native")


@needs_native
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantization": "int8"}])
def test_narrow_weights_are_served_whole(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    served: Counter[torch.dtype] = Counter()
    run = DECODE_LAYERS._module("cpu").run

    def counted(call: Call) -> torch.Tensor:
        served[call.stack.layers[0].wqkv.weight.dtype] += 1
        return run(call)

    monkeypatch.setattr(DECODE_LAYERS._module("cpu"), "run", counted)
    engine = Engine(small_family(), linear="native", **settings)  # type: ignore[arg-type]
    engine.generate("a red apple", decoder="serial", sampling=SAMPLING, seed=3)
    assert list(served) == [torch.bfloat16 if "dtype" in settings else torch.int8]
    assert served.total() >= engine.family.models[0].config.grids[-1] ** 2 - 1


@needs_native
def test_layers_that_change_are_the_ones_that_run() -> None:
    """Weights written to in place or swapped between two images, as after a step of training."""
    family = small_family()
    engine = Engine(family, linear="native")
    before = engine.generate("a red apple", decoder="serial", sampling=SAMPLING, seed=3).tokens
    with torch.no_grad():
        for block in family.models[0].blocks:
            block.attention_norm.weight.mul_(-1)  # type: ignore[union-attr]
            block.w2.weight.data = -block.w2.weight.data  # type: ignore[union-attr]
    after = engine.generate("a red apple", decoder="serial", sampling=SAMPLING, seed=3).tokens
    choose(family.models, "torch")
    expected = engine.generate("a red apple", decoder="serial", sampling=SAMPLING, seed=3).tokens
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)
