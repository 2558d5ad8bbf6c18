"""Rows whose engine has a type of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.measure.decode import bench_decode
from mulosd.measure.row_engines import engines_of, split
from mulosd.measure.rows import rows_of
from mulosd.measure.table import labels

PROMPTS = ["a red cat", "a blue dog"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = random_family((4, 8)).save(tmp_path_factory.mktemp("families") / "random")
    return Engine.from_pretrained(folder)


def test_a_decoder_may_say_what_its_engine_computes_in() -> None:
    assert split("zipar:window=4") == ("zipar:window=4", {})
    text = "zipar:dtype=bfloat16:window=4:quantization=int8"
    assert split(text) == ("zipar:window=4", {"dtype": "bfloat16", "quantization": "int8"})
    for wrong in ("serial:dtype", "serial:dtype=", "serial:dtype=float32:dtype=bfloat16"):
        with pytest.raises(ValueError, match="must state dtype once, as dtype=VALUE"):
            split(wrong)


def test_each_kind_of_engine_is_loaded_once(engine: Engine) -> None:
    assert engines_of(engine, [{}, {}]) is None
    narrow = {"dtype": "bfloat16"}
    found = engines_of(engine, [{}, narrow, narrow, {"quantization": "int8"}])
    assert found is not None
    (first, own), (name, half), (_, again), (_, eight) = found
    assert (first, name) == ("", "dtype=bfloat16") and own is engine and half is again
    assert (str(half.dtype), eight.family.quantization) == ("torch.bfloat16", "int8")
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        engines_of(engine, [{"dtype": "float8"}])
    with pytest.raises(ValueError, match="in no folder"):
        engines_of(Engine(random_family((4, 8))), [narrow])


def test_rows_of_both_types_are_drawn_by_their_own_engine_and_kept(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: set[tuple[str, str]] = set()
    generate = Engine.generate

    def noted(self: Engine, *args: Any, **kwargs: Any) -> Any:
        drawn.add((kwargs["decoder"].name, str(self.dtype)))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "generate", noted)
    decoders, runs = ["serial", "serial:dtype=bfloat16", "zipar:window=1:dtype=bfloat16"], tmp_path / "runs.jsonl"
    report = bench_decode(engine, PROMPTS, decoders, seed=3, runs=runs)
    specs = ["serial:grid=8", "serial:grid=8:dtype=bfloat16", "zipar:window=1:grid=8:dtype=bfloat16"]
    assert [row["spec"] for row in report["rows"]] == specs
    assert [row["settings"].get("dtype") for row in report["rows"]] == [None, "bfloat16", "bfloat16"]
    assert labels(rows_of(report))[1] == "serial bfloat16 engine"
    assert drawn == {("serial", "torch.float32"), ("serial", "torch.bfloat16"), ("zipar", "torch.bfloat16")}
    monkeypatch.undo()
    half = Engine.from_pretrained(engine.family.path or "", dtype="bfloat16")
    wanted = half.generate(PROMPTS, decoder="serial", seed=[3, 4], batch_size=1).tokens
    found = engine.nll(PROMPTS, wanted, [3, 4]).mean()
    assert report["rows"][1]["nll"] == pytest.approx(float(found), rel=1e-4)
    before = runs.read_text()
    again = bench_decode(engine, PROMPTS, decoders, seed=3, runs=runs)
    assert runs.read_text() == before and again["rows"][2]["nll"] == report["rows"][2]["nll"]
    with pytest.raises(ValueError, match="another"):
        bench_decode(engine, PROMPTS, ["serial", "serial", "zipar:window=1"], seed=3, runs=runs)
