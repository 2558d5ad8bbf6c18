"""The decode path of TA-Tok against the SigLIP 2 vision model of transformers, which Tar builds it from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from released import tiny_ta_tok

from mulosd.checkpoints import load_ta_tok


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("side", [27, 13, 9])
@torch.inference_mode()
def test_features_equal_those_of_transformers(side: int, normalised: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    state = tiny_ta_tok()
    args = {"bottleneck": {"args": {"regularizer": {"args": {"l2_normalized": normalised}}}}}
    torch.save({"model": {"args": args, "sd": state}}, tmp_path / "ta_tok.pth")
    config = transformers.Siglip2VisionConfig(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_channels=8, patch_size=1, num_patches=256
    )
    vision = transformers.Siglip2VisionModel(config).eval()
    own = vision.state_dict()
    prefix = "decoder." if any(k.startswith("vision_model.") for k in own) else "decoder.vision_model."
    vision.load_state_dict({k: state.get(prefix + k, v) for k, v in own.items()})
    used = {prefix + k for k in own if "head." not in k}
    assert used <= state.keys()
    ids = torch.randint(32, (2, side * side), generator=torch.Generator().manual_seed(0))

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    codes = linear("bottleneck.regularizer.embedding_proj", state["bottleneck.regularizer.embedding.weight"][ids])
    codes = linear("bottleneck.out_linear", F.normalize(codes, dim=-1) if normalised else codes)
    shapes = torch.tensor([[side, side]] * 2)
    hidden = vision(codes, torch.ones(ids.shape, dtype=torch.int), shapes).last_hidden_state
    wanted = linear("decode_task_layer.2", linear("decode_task_layer.0", hidden).tanh())
    found = load_ta_tok(tmp_path / "ta_tok.pth")(ids)
    assert found.shape == (2, side * side, 48)
    assert torch.allclose(found, wanted, atol=1e-5), float((found - wanted).abs().max())
