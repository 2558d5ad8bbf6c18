"""Files that are not what they should be: a clear error each, nothing run, nothing left behind."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from released import CONTAINERS, tiny_ar, tiny_ta_tok, tiny_vq
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from mulosd.checkpoints import load_ar, load_ta_tok, load_vq
from mulosd.checkpoints.container import read_checkpoint
from mulosd.checkpoints.source import locate
from mulosd.cli import app


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("container", ["args", "value", "plain"])
def test_a_pickle_with_code_is_refused_and_not_run(container: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    state: dict[str, Any] = {"model": tiny_ar("class", 4, 0)}
    if container == "plain":
        path.write_bytes(pickle.dumps(Hostile(trace)))
    else:
        torch.save({**state, container: Hostile(trace)}, path)
    with pytest.raises(ValueError, match=r"evil\.pt (was refused: it asks for (posix|nt|os)\.system|is not a check)"):
        load_ar(path, heads=2)
    assert not trace.exists()
    # The same file does run its code where it is trusted: the test can fail.
    if container != "plain":
        torch.load(path, weights_only=False)
        assert trace.exists()


def test_a_file_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save({"model": tiny_ar("class", 4, 0)}, path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            load_ar(path, heads=2)
    cut = tmp_path / "cut.safetensors"
    save_file({"a": torch.zeros(4)}, cut)
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(ValueError, match="a safetensors file that is cut short"):
        load_ar(cut)
    with pytest.raises(ValueError, match="there is no file"):
        load_ar(tmp_path / "none.pt")


def test_the_wrong_kind_of_file(tmp_path: Path, files: Any) -> None:
    with pytest.raises(ValueError, match=r"no AR model of LlamaGen or Tar: tok_embeddings\.weight is missing"):
        load_ar(files["vq.pt"])
    with pytest.raises(ValueError, match=r"no VQ tokenizer of LlamaGen: quantize\.embedding\.weight is missing"):
        load_vq(files["c2i_4.pt"])
    with pytest.raises(ValueError, match="no TA-Tok of Tar"):
        load_ta_tok(files["vq.pt"])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="found a list"):
        load_ar(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="found a dict of 'epoch'"):
        load_ar(tmp_path / "dict.pt")
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    with pytest.raises(ValueError, match=r"text\.pt"):
        load_ar(tmp_path / "text.pt")


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = tiny_ar("caption", 4, 0)
    del state["layers.1.attention.wo.weight"]
    state["layers.0.ffn_norm.weight"] = torch.ones(31)
    state["extra.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match="does not fit llamagen with 2 layers, 32 dimensions, 2 heads") as caught:
        load_ar(saved(state, tmp_path / "a.pt"), heads=2)
    message = str(caught.value)
    assert "missing: layers.1.attention.wo.weight" in message
    assert "unexpected: extra.weight" in message
    assert "mis-shaped: layers.0.ffn_norm.weight is [31], not [32]" in message
    ta_tok = tiny_ta_tok()
    del ta_tok["decoder.vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"missing: decoder\.encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        load_ta_tok(saved(ta_tok, tmp_path / "ta_tok.pt"))
    vq = tiny_vq()
    del vq["post_quant_conv.bias"]
    with pytest.raises(ValueError, match=r"missing: post_quant_conv\.bias"):
        load_vq(saved(vq, tmp_path / "vq.pt"))


def test_heads_are_inferred_or_asked_for(tmp_path: Path) -> None:
    path = saved(tiny_ar("class", 4, 0), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"2 layers of 32 dimensions, which is no released size.*--heads"):
        load_ar(path)
    with pytest.raises(ValueError, match="3 heads do not divide"):
        load_ar(path, heads=3)
    assert load_ar(path, heads=8).config.head_dim == 4


def test_containers_hold_the_same_tensors(tmp_path: Path) -> None:
    state = tiny_ar("tar", 4, 0)
    for name, wrap in CONTAINERS.items():
        found = read_checkpoint(saved(wrap(state, {"n_head": 2}), tmp_path / f"{name}.pt"))
        assert found.tensors.keys() == state.keys()
        assert all(torch.equal(found.tensors[k], state[k]) for k in state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "old.pt").tensors.keys() == state.keys()


def test_where_files_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vq.pt").touch()
    assert locate(tmp_path, ("other.pt", "vq.pt"), "--vq") == tmp_path / "vq.pt"
    with pytest.raises(ValueError, match=r"without other\.pt"):
        locate(tmp_path, ("other.pt",), "--vq")
    with pytest.raises(ValueError, match="no such file"):
        locate(tmp_path / "none.pt", (), "--vq")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"someone/something cannot be reached; fetch vq\.pt"):
        locate("someone/something", ("vq.pt",), "--vq")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"--drafter": "vq.pt"}, "no AR model"),
        ({"--drafter": "t2i_4.pt"}, "one conditioned on classes and one on captions"),
        ({"--drafter": "c2i_8.pt"}, "two models of the family serve the 8x8 grid"),
        ({"--target-size": "17"}, "no whole number of 2-px tokens"),
        ({"--heads": None}, "--heads"),
        ({"--vq": "none.pt"}, "no such file"),
        ({"--class-names": "none.txt"}, "no such file"),
    ],
)
def test_a_failed_conversion_leaves_nothing(
    change: dict[str, str | None], reason: str, files: Any, tmp_path: Path
) -> None:
    options = {"--drafter": "c2i_4.pt", "--target": "c2i_8.pt", "--vq": "vq.pt", "--heads": "2"} | change
    arguments = ["convert", "llamagen", "--output", str(tmp_path / "family")]
    for key, value in options.items():
        if value is not None:
            is_file = key in ("--drafter", "--target", "--vq", "--class-names")
            arguments += [key, str(files[value]) if is_file else value]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and reason in result.stderr
    assert list(tmp_path.iterdir()) == []
