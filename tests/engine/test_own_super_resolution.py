"""Super-resolution weights of one's own, through spandrel."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from mulosd.engine.decoding import DraftOnly
from mulosd.engine.engine import Engine
from mulosd.engine.super_resolution import own_network, super_resolve_with


class Network:
    """Stands for spandrel's descriptor: repeats pixels."""

    def __init__(self, scale: int, channels: int = 3) -> None:
        self.scale, self.input_channels = scale, channels

    def eval(self) -> Network:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        assert x.min() >= 0 and x.max() <= 1
        return F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files x2.pth, x4.pth and gray.pth, which a stand-in for spandrel reads."""
    networks = {"x2": Network(2), "x4": Network(4), "gray": Network(2, 1)}

    def load(state: dict[str, Tensor]) -> Network:
        (name,) = state
        if name not in networks:
            raise RuntimeError("unsupported")
        return networks[name]

    loader = SimpleNamespace(load_from_state_dict=load)
    module = SimpleNamespace(
        ModelLoader=lambda device: loader,
        ImageModelDescriptor=Network,
        canonicalize_state_dict=lambda state: state.get("params", state),
    )
    monkeypatch.setitem(sys.modules, "spandrel", module)
    own_network.cache_clear()
    for name in (*networks, "other"):
        torch.save({"params": {name: torch.zeros(1)}}, tmp_path / f"{name}.pth")
    return tmp_path


@pytest.mark.parametrize(("file", "ratio"), [("x2", 2), ("x2", 4), ("x4", 4), ("x4", 2)])
def test_any_network_serves_any_ratio(weights: Path, file: str, ratio: int) -> None:
    image = torch.linspace(-1, 1, 8).expand(2, 3, 8, 8).contiguous()
    large = super_resolve_with(weights / f"{file}.pth", image, (8 * ratio, 8 * ratio))
    assert large.shape == (2, 3, 8 * ratio, 8 * ratio)
    repeated = F.interpolate(image, scale_factor=float(ratio), mode="nearest")
    assert (large - repeated).abs().max() < (1e-6 if file == f"x{ratio}" or ratio == 4 else 0.3)


def test_decoders_take_a_weights_file(weights: Path, engine: Engine) -> None:
    tokens = engine.generate("apple", decoder=DraftOnly(scale=2, upsampler=str(weights / "x2.pth"))).tokens
    assert tokens.shape == (1, 8, 8)


def test_what_cannot_serve_is_told(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"no network that enlarges RGB"):
        super_resolve_with(weights / "gray.pth", image, (8, 8))
    with pytest.raises(ValueError, match=r"spandrel cannot read .*other\.pth.*unsupported"):
        super_resolve_with(weights / "other.pth", image, (8, 8))
    with pytest.raises(ValueError, match="no file of super-resolution weights"):
        DraftOnly(upsampler="none.pth")
    with pytest.raises(ValueError, match="there is no up-sampler 'cubic'"):
        DraftOnly(upsampler="cubic")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    own_network.cache_clear()
    with pytest.raises(ImportError, match=r"mulosd\[spandrel\]"):
        super_resolve_with(weights / "x2.pth", image, (8, 8))


def test_super_resolution_weights_that_are_torchscript_are_refused_before_any_loader_sees_them(
    tmp_path: Path, weights: Path
) -> None:
    """A `.pt` goes to `torch.jit.load` in the loader of spandrel, which runs what is in it."""

    class Program(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.script(Program()).save(str(tmp_path / "program.pt"))
    with pytest.raises(ValueError, match=r"program\.pt is a TorchScript program, which runs code.*safetensors"):
        own_network(tmp_path / "program.pt", torch.device("cpu"))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"params": Trap()}, protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth.*safetensors") as raised:
        own_network(tmp_path / "evil.pth", torch.device("cpu"))
    assert "weights_only" not in str(raised.value) and not Path("made-by-a-pickle").exists()


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made-by-a-pickle",)


def test_super_resolution_weights_as_safetensors_reach_the_loader_whatever_the_suffix(weights: Path) -> None:
    for name in ("x2.safetensors", "x4.pt"):
        save_file({Path(name).stem: torch.zeros(1)}, weights / name)
        own_network.cache_clear()
        assert own_network(weights / name, torch.device("cpu")).scale == int(name[1])
