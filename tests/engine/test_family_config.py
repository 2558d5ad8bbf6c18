"""family.json: what it says is checked, and whatever is wrong with it is one error that names the file."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mulosd.engine.decoding import parse
from mulosd.engine.family import Family, add_eagle, bundled_folder, store_calibration, store_resamplers
from mulosd.engine.family_config import Calibration, FamilyConfig, read_json
from mulosd.engine.models.eagle import EagleDrafter
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.weights import read_tensors, write_tensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = random_family(drafter=True)
    return family.save(tmp_path_factory.mktemp("families") / "random")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "family"))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / "family.json").read_text())
    changed = change(values)
    (folder / "family.json").write_text(json.dumps(values if changed is None else changed))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b'{"format": 2, "name": "x"', "line 1, column"),
        (b"[1, 2]", "must be an object"),
        (b"\xff\xfe{}", "no UTF-8 text"),
        (b"[" * 100_000, "no JSON"),
        (b'{"format": 7}', "formats 1 and 2"),
        (b'{"name": "x"}', "formats 1 and 2"),
        (b'{"format": 2}', "lacks the key"),
        (b'{"format": 1, "name": "x"}', "lacks the key"),
    ],
)
def test_what_is_no_family_json_is_said_with_the_files_name(folder: Path, content: bytes, message: str) -> None:
    (folder / "family.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        Family.load(folder)
    assert str(folder / "family.json") in str(raised.value) and "\n" not in str(raised.value)


def test_a_byte_order_mark_is_read(folder: Path) -> None:
    file = folder / "family.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Family.load(folder).name == "random"


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda v: v.update(colour="red"), "unknown key 'colour'"),
    "sampling": (lambda v: v.update(sampling={"cfg": 3}), "unknown key 'cfg'; possible are cfg_scale"),
    "sampling type": (lambda v: v.update(sampling={"top_k": "many"}), "sampling.top_k must be int"),
    "sampling list": (lambda v: v.update(sampling=[1]), "sampling must be an object"),
    "name": (lambda v: v.update(name="\x1b[31mred"), "printable"),
    "no tokenizer": (lambda v: v.pop("tokenizer") and None, "lacks the key 'tokenizer'"),
    "tokenizer kind": (lambda v: v["tokenizer"].update(kind="jpeg"), "kind must be one of tokenizer, vq"),
    "tokenizer key": (lambda v: v["tokenizer"].update(shade=1), "tokenizer: has the unknown key 'shade'"),
    "conditioner": (lambda v: v.update(conditioner=5), "must be an object"),
    "models": (lambda v: v.update(models=[]), "models"),
    "model dim": (lambda v: v["models"][0].update(dim="wide"), "models"),
    "layers": (lambda v: v["models"][0].update(n_layers=200_000), "n_layers is 200000, and the weights hold"),
    "text layers": (lambda v: v["conditioner"]["text"].update(n_layers=200_000), "the weights hold"),
    "blocks": (lambda v: v["resamplers"][0].update(blocks=200_000), "the weights hold"),
    "size": (lambda v: v["models"][0].update(vocab_size=10**15), "must be a number up to"),
    "path": (lambda v: v["models"][0].update(file="../../secret"), "name of a file in the folder"),
    "calibration": (lambda v: v.update(calibration={"2-latent": {"tau": 0.1}}), "lacks the key 'scale'"),
    "calibration tau": (
        lambda v: v.update(calibration={"x": {"decoder": "mulo:scale=2:upsampler=latent:tau=-1:radius=0:pool=1"}}),
        "tau must be 0 or more",
    ),
    "calibration text": (lambda v: v.update(calibration={"x": {"decoder": "serial"}}), "must be the text of a decoder"),
    "default": (lambda v: v.update(default={"speed": 3}), "unknown key 'speed'; possible are scale, upsampler"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_is_wrong_is_named(folder: Path, case: str) -> None:
    change, message = CHANGES[case]
    rewritten(folder, change)
    # The file of the up-samplers holds their sizes too, and they come first.
    if case == "blocks":
        rewritten_weights = folder / "resamplers.safetensors"
        rewritten_weights.write_bytes(rewritten_weights.read_bytes())
    begun = time.monotonic()
    with pytest.raises(ValueError, match=message) as raised:
        Family.load(folder)
    assert str(folder / "family.json") in str(raised.value)
    assert time.monotonic() - begun < 60


def places(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of nested values."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in items for place in ((*at, key), *places(value, (*at, key)))]


ODD = [None, True, -1, 0, 3.7, 10**30, float("nan"), "", "x", "../..", [], [[]], {}, {"a": {"b": 1}}]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji", "photo"])
def test_any_one_change_is_read_or_refused_with_the_files_name(name: str, tmp_path: Path) -> None:
    """A seeded walk over the bundled file: 150 mutations, none of which raises anything but a ValueError."""
    folder = tmp_path / name
    folder.mkdir()
    for file in (bundled_folder() / name).glob("*.safetensors"):
        (folder / file.name).symlink_to(file)
    original = json.loads((bundled_folder() / name / "family.json").read_text())
    rng = np.random.default_rng(5)
    where = [p for p in places(original) if p[0] != "scenes" and p[:2] != ("photos", "counts")]
    refused: dict[str, str] = {}
    for _ in range(150):
        values = copy.deepcopy(original)
        *path, last = where[rng.integers(len(where))]
        parent = values
        for key in path:
            parent = parent[key]
        if rng.random() < 0.3:
            del parent[last]
        else:
            parent[last] = ODD[rng.integers(len(ODD))]
        (folder / "family.json").write_text(json.dumps(values))
        try:
            Family.load(folder, weights=False)
        except ValueError as error:
            refused[str((*path, last))] = str(error)
    assert len(refused) > 25
    assert [at for at, message in refused.items() if str(folder) not in message] == []


LARGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dimensions": lambda v: v["models"][0].update(dim=1 << 30, head_dim=1 << 30, n_heads=1),
    "vocabulary": lambda v: v["tokenizer"].update(codebook_size=1 << 30),
    "grids": lambda v: v["models"][0].update(grids=[2, 4, 1 << 20]),
    "many grids": lambda v: v["models"][0].update(grids=list(range(1, 200_000))),
    "levels": lambda v: v["tokenizer"].update(channels=[8] * 200_000),
    "models": lambda v: v.update(models=v["models"] * 100_000),
    "up-samplers": lambda v: v.update(resamplers=v["resamplers"] * 20_000),
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("case", LARGE)
def test_sizes_that_the_weights_do_not_hold_are_refused_before_anything_is_allocated(
    folder: Path, case: str, weights: bool
) -> None:
    """By the headers of the weights; `mulosd info`, which reads no weights, refuses them too."""
    rewritten(folder, LARGE[case])
    with pytest.raises(ValueError, match=r"weights|does not fit|token sides|codes|bytes") as raised:
        Family.load(folder, weights=weights)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_what_a_weights_file_says_of_itself_is_bounded_too(folder: Path) -> None:
    file = folder / "resamplers.safetensors"
    tensors, metadata = read_tensors(file)
    for blocks, message in (("200000", "the weights hold"), ('"many"', "resamplers"), ("[" * 3000, "resamplers")):
        values = json.loads(metadata["resamplers"])
        text = json.dumps(values).replace(f'"blocks": {values[0]["blocks"]}', f'"blocks": {blocks}', 1)
        write_tensors(file, tensors, {"resamplers": text})
        with pytest.raises(ValueError, match=message) as raised:
            Family.load(folder)
        assert str(folder) in str(raised.value)


def test_any_damage_of_a_weights_file_is_refused_with_its_name(folder: Path) -> None:
    rng, said = np.random.default_rng(8), []
    for name in ("ar", "resamplers", "tokenizer"):
        file = folder / f"{name}.safetensors"
        whole = file.read_bytes()
        for n in range(20):
            data = bytearray(whole)
            at = int(rng.integers(min(len(data), 3000)))
            if n % 3 == 0:
                del data[at:]
            else:
                data[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(bytes(data))
            try:
                Family.load(folder)
            except ValueError as error:
                said.append(str(error))
        file.write_bytes(whole)
    assert len(said) > 20
    assert all(str(folder) in text and "\n" not in text for text in said)


def test_a_drafter_that_replaces_another_is_stored_in_one_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is stopped between its two files leaves a family that loads, with the new drafter."""
    family = Family.load(folder)
    config = replace(family.eagle.config, grids=(4, 8))
    torch.manual_seed(1)
    monkeypatch.setattr("mulosd.engine.family.change", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        add_eagle(folder, EagleDrafter(config, family.ar))
    assert Family.load(folder).eagle.config.grids == (4, 8)


def test_settings_are_spelled_as_decoders(folder: Path) -> None:
    found = Calibration(2, "latent", pool=3, radius=1, tau=0.05, rejection=0.02, wanted=0.02, prompts=8, window=2)
    store_calibration(folder, found, default=True)
    values = json.loads((folder / "family.json").read_text())
    text = values["calibration"]["2-latent"]["decoder"]
    assert text == "mulo:scale=2:upsampler=latent:pool=3:radius=1:tau=0.05:window=2"
    assert values["default"] == "mulo:scale=2:upsampler=latent"
    family = Family.load(folder)
    assert family.calibration(2, "latent") == found and (family.scale, family.upsampler) == (2, "latent")
    assert parse("mulo").resolve(family) == parse(text).resolve(family)


def test_the_former_form_of_settings_is_read() -> None:
    old = {"scale": 2, "upsampler": "pixel", "pool": 1, "radius": 0, "tau": 0.5, "rejection": 0.1, "wanted": 0.1}
    given = {"format": 2, "name": "old", "calibration": {"2-pixel": old}, "default": {"scale": 2}}
    config = FamilyConfig.from_dict({**given, "sampling": {"cfg_scale": 2, "top_k": 5}})
    assert config.calibrations["2-pixel"].tau == 0.5 and config.scale == 2
    assert config.sampling == SamplingParams(cfg_scale=2.0, top_k=5)
    assert FamilyConfig.from_dict(config.to_dict()) == config


def test_new_up_samplers_are_stored_in_one_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that is stopped between its two files leaves a family that loads, with the new weights."""
    family = Family.load(folder)
    trained = family.resamplers[2, 8]
    for parameter in trained.parameters():
        parameter.data += 1
    monkeypatch.setattr("mulosd.engine.family.change", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    before = (folder / "family.json").read_text()
    with pytest.raises(KeyboardInterrupt):
        store_resamplers(folder, [trained])
    assert (folder / "family.json").read_text() == before
    new = next(iter(Family.load(folder).resamplers[2, 8].parameters()))
    assert np.allclose(new, next(iter(trained.parameters())), atol=1e-3)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_format_1_is_read(folder: Path) -> None:
    values = read_json(folder)
    conditioner, model = values.pop("conditioner"), values.pop("models")[0]
    old = {
        **{k: v for k, v in values.items() if k != "eagle"},
        "format": 1,
        "tokenizer": {k: v for k, v in values["tokenizer"].items() if k != "kind"},
        "text": conditioner["text"],
        "vocabulary": conditioner["vocabulary"],
        "ar": {k: v for k, v in model.items() if k not in ("kind", "file")},
    }
    (folder / "family.json").write_text(json.dumps(old))
    assert Family.load(folder).grids == (2, 4, 8)
