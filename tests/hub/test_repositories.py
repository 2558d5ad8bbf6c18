"""Repositories of the hub: what is read of them, from where, and what is said of those that are not whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulosd.engine.engine import Engine
from mulosd.engine.hub import find, load_family
from mulosd.engine.hub.llama import interleaved
from mulosd.engine.models.layers import apply_rotary, rotary_table_1d


def changed(folder: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json") -> None:
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))


@pytest.fixture
def copy(janus_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(janus_folder, tmp_path / "copy"))


@pytest.fixture
def cache(emu3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that holds owner/emu, without a network."""
    from huggingface_hub import constants

    home = tmp_path / "models--owner--emu"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(emu3_folder, home / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_repository_in_the_cache_is_read_without_a_network(cache: Path) -> None:
    engine = Engine.from_pretrained("owner/emu", grids=(3,), prompt_length=20)
    assert engine.family.name == "owner/emu"
    assert engine.generate("a red apple").tokens.shape == (1, 3, 3)


@pytest.mark.parametrize("pipeline", [False, True])
def test_of_a_pipeline_only_the_autoregressive_part_is_fetched(
    pipeline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        (tmp_path / ("model_index.json" if pipeline else "config.json")).write_text("{}")
        fetched.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find("owner/model") == tmp_path
    names = ["vision_language_encoder/model.safetensors", "processor/tokenizer.json", "transformer/model.safetensors"]
    names += ["model.safetensors", "modeling.py", "model.bin"]
    taken = [name for name in names if any(fnmatch(name, pattern) for pattern in fetched)]
    assert taken == (names[:2] if pipeline else names[:4])
    if pipeline:
        with pytest.raises(ValueError, match="without a folder vision_language_encoder"):
            load_family("owner/model")


def test_a_repository_that_is_nowhere_says_what_to_do(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"neither in the cache nor can it be reached.*hf download owner/other"):
        load_family("owner/other")


def test_a_bundled_family_and_an_unknown_name_are_what_they_were(tmp_path: Path) -> None:
    assert load_family("emoji", weights=False).name == "emoji"
    with pytest.raises(ValueError, match="there is no family 'nowhere'"):
        load_family("nowhere")
    with pytest.raises(ValueError, match="for repositories of the hub"):
        load_family("emoji", grids=(4,))
    assert find(tmp_path / "no" / "folder") is None


def test_weights_may_stay_unread(emu3_folder: Path) -> None:
    family = load_family(emu3_folder, weights=False)
    assert family.grids == (90,)
    assert all(t.is_meta for t in family.ar.state_dict().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(model_type="llama"), "model_type 'llama'; known here are janus, emu3, glm_image"),
        (lambda v: v.update(model_type="multi_modality"), "is read from deepseek-community/Janus-Pro-1B"),
        (
            lambda v: v["text_config"].update(hidden_size=32),
            r"has \[90, 64\] for model.language_model.embed_tokens.weight, not \[90, 32\]",
        ),
        (lambda v: v["text_config"].update(num_hidden_layers=3), "lacks model.language_model.layers.2"),
        (lambda v: v["text_config"].update(hidden_size="wide"), "text_config.hidden_size must be a number"),
        (lambda v: v["text_config"].update(hidden_act="gelu"), "hidden_act must be 'silu'"),
        (
            lambda v: v["text_config"].update(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
            "rotary positions of the kind 'yarn'",
        ),
        (lambda v: v["vq_config"].update(num_embeddings=65), "has .*64.* for model.generation_embeddings.weight"),
    ],
)
def test_a_config_that_does_not_fit_is_named(copy: Path, change: Callable[[Any], None], message: str) -> None:
    changed(copy, change)
    for weights in (False, True):
        with pytest.raises(ValueError, match=message):
            load_family(copy, weights=weights)


def test_pickles_are_not_read(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights are read from safetensors alone"):
        load_family(copy)


def test_missing_and_damaged_weights_are_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = torch.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        load_family(copy)
    save_file({k: v for k, v in tensors.items() if k != name}, copy / "model.safetensors")
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load_family(copy)


def test_a_shard_that_is_missing_and_an_index_that_leads_elsewhere(emu3_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(emu3_folder, tmp_path / "shards"))
    first = sorted(folder.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ValueError, match=f"lacks {first.name}"):
        load_family(folder)
    index = "model.safetensors.index.json"
    changed(folder, lambda v: v["weight_map"].update({"lm_head.weight": "../other.safetensors"}), index)
    with pytest.raises(ValueError, match="names of files beside it"):
        load_family(folder)


def test_files_of_other_versions_have_other_prefixes(emu3_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(emu3_folder, tmp_path / "other"))
    tensors = {}
    for file in folder.glob("model*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    renamed = {
        "text_model.model.": "model.text_model.",
        "text_model.lm_head.": "lm_head.",
        "vqmodel.": "model.vqmodel.",
    }
    assert all(name.startswith(tuple(renamed)) for name in tensors), "as they are saved"
    newer = {
        next(name.replace(a, b, 1) for a, b in renamed.items() if name.startswith(a)): value
        for name, value in tensors.items()
    }
    save_file(newer, folder / "model.safetensors")
    wanted, found = load_family(emu3_folder), load_family(folder)
    for name, value in wanted.ar.state_dict().items():
        assert torch.equal(found.ar.state_dict()[name], value)


def test_rotary_pairs_that_lie_half_a_head_apart_become_neighbours() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, x = torch.randn(2 * 8, 5, generator=generator), torch.randn(1, 7, 5, generator=generator)
    table = rotary_table_1d(7, 6, 100.0)
    # As Llama on the hub turns it: element j with element j + 3 of the six that turn.
    heads = (x @ weight.t()).unflatten(-1, (2, 8))
    turned, rest = heads[..., :6], heads[..., 6:]
    cos, sin = (table[None, :, None, :, i].repeat(1, 1, 1, 2) for i in range(2))
    half = torch.cat([-turned[..., 3:], turned[..., :3]], dim=-1)
    wanted = torch.cat([turned * cos + half * sin, rest], dim=-1)
    full = torch.cat([table, torch.tensor([1.0, 0.0]).expand(7, 1, 2)], dim=1)
    found = apply_rotary((x @ interleaved(weight, 8, 6).t()).unflatten(-1, (2, 8)), full)
    # Every score between two tokens is the same, which is all that attention sees.
    scores, again = (torch.einsum("bqhd,bkhd->bhqk", y, y) for y in (wanted, found))
    assert torch.allclose(scores, again, atol=1e-5)
