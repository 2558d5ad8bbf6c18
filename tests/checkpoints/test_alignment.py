"""Alignment of a converted, class-conditional family, which has one network a grid."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mulosd.checkpoints.convert import convert_llamagen
from mulosd.engine.decoding import MuloSD
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family, store_resamplers
from mulosd.engine.models.upsampler import LatentResampler, ResamplerConfig
from mulosd.train.align import align_upsampler
from mulosd.train.distill import distill_drafter, with_own_drafter


@pytest.fixture
def family(files: Any, tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = convert_llamagen(
        files["c2i_8.pt"], files["vq.pt"], tmp_path / "family", drafter=files["c2i_4.pt"], heads=2
    )
    dim = Family.load(folder).tokenizer.config.code_dim
    store_resamplers(folder, [LatentResampler(ResamplerConfig(4, 8, dim, 8, 1))])
    return folder


def test_classes_are_drawn_and_the_other_networks_stay(family: Path, tmp_path: Path) -> None:
    options = {"steps": 2, "batch": 2, "pool": 4, "lr": 1e-2}
    aligned = align_upsampler(family, tmp_path / "aligned", tmp_path / "a", **options)
    distilled = distill_drafter(family, tmp_path / "distilled", tmp_path / "d", **options)
    changed = {aligned: {"resamplers"}, distilled: {"ar-4"}}
    for folder, parts in changed.items():
        names = {p.stem for p in folder.glob("*.safetensors")}
        assert names == {p.stem for p in family.glob("*.safetensors")}
        same = {
            n for n in names if (folder / f"{n}.safetensors").read_bytes() == (family / f"{n}.safetensors").read_bytes()
        }
        assert same == names - parts
        Engine.from_pretrained(folder).generate("3", decoder=MuloSD(tau=0.01, radius=0, pool=1))


def test_one_network_for_two_grids_is_split(family: Path) -> None:
    loaded = Family.load(family)
    model = loaded.model(8)
    model.config = type(model.config)(**{**model.config.to_dict(), "grids": (4, 8)})
    shared = Family({"name": "shared"}, loaded.tokenizer, loaded.conditioner, [model], loaded.resamplers)  # type: ignore[arg-type]
    split = with_own_drafter(shared, 4)
    assert [m.config.grids for m in split.models] == [(4,), (8,)]
    cond, tokens = shared.features(["3"]), torch.zeros(1, 16, dtype=torch.int64)
    assert torch.equal(split.model(4)(cond, tokens, 4), shared.model(4)(cond, tokens, 4))
    with torch.no_grad():
        split.model(4).output.weight.zero_()
    assert split.model(8).output.weight.any() and model.config.grids == (4, 8)
