"""Golden values of the reference implementations, from a file in every container to logits, tokens and pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_ar_dtok import branches
from released import AR_SETS, CONTAINERS, Golden, load_golden
from torch import Tensor

from mulosd.checkpoints import load_ar, load_vq, logits
from mulosd.engine.batch import Draw, Feed
from mulosd.engine.cache import KVCache, Lane
from mulosd.engine.models.ar_model import ARModel
from mulosd.engine.request import prefix
from mulosd.engine.runner import run
from mulosd.engine.sampling import Noise, Purpose, SamplingParams

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=AR_SETS)
def golden(request: pytest.FixtureRequest) -> Golden:
    torch.set_num_threads(1)
    return load_golden(request.param)


def difference(model: ARModel, golden: Golden) -> float:
    """Largest difference of the logits of both branches."""
    mask = golden.arrays.get("prefix_mask")
    found = {"cond": golden.condition, "uncond": None}
    return max(
        float(
            (logits(model, c, golden.arrays["tokens"], mask)[0][golden.rows] - golden.arrays[f"logits_{branch}"])
            .abs()
            .max()
        )
        for branch, c in found.items()
    )


@pytest.mark.parametrize("container", CONTAINERS)
def test_logits_from_every_container(golden: Golden, container: str, tmp_path: Path) -> None:
    path = tmp_path / "released.pt"
    torch.save(CONTAINERS[container](golden.state, golden.args), path)
    # The head count is in Tar's arguments; elsewhere it is in no tensor, and these sizes were never released.
    heads = None if container == "tar" else 2
    model = load_ar(path, heads=heads, image_positions=golden.image_positions)
    assert difference(model, golden) <= TOLERANCE


def greedy(model: ARModel, golden: Golden, collapse: bool) -> Tensor:
    """Greedy tokens [N] with guidance, one cached step at a time, as the engine decodes."""
    tokens = golden.arrays["tokens"]
    if golden.name == "llamagen_c2i":
        features = torch.tensor([golden.condition.item(), 1000]).view(2, 1, 1)
    else:
        features = torch.cat([golden.condition, torch.zeros_like(golden.condition)])
    mask = golden.arrays["prefix_mask"][0].bool() if "prefix_mask" in golden.arrays else None
    lane = Lane(KVCache(model, 8, collapse=collapse), features, mask=mask)
    params = SamplingParams(cfg_scale=4.0, temperature=0.0)
    noise = Noise(0, model.config.vocab_size, Purpose.TARGET, features.device)
    plan, results = prefix(lane), None
    while True:
        try:
            results = run(plan.send(results) if results else next(plan))
        except StopIteration as stop:
            first = stop.value
            break
    drawn = [torch.lerp(first.uncond, first.cond, 4.0).argmax(dim=-1)]
    for i in range(1, tokens.shape[1]):
        [result] = run([Feed(lane, drawn[-1], range(i - 1, i), draw=Draw(noise, [i], params))])
        assert result.tokens is not None
        drawn.append(result.tokens)
    return torch.cat(drawn)


@torch.inference_mode()
@pytest.mark.parametrize("collapse", [False, True])
def test_greedy_tokens_of_the_engine(golden: Golden, collapse: bool, tmp_path: Path) -> None:
    path = tmp_path / "released.pt"
    torch.save({"model": golden.state}, path)
    model = load_ar(path, heads=2, image_positions=golden.image_positions)
    if collapse and not model.zero_prefix:
        with pytest.raises(ValueError, match="cannot be collapsed"):
            KVCache(model, 8, collapse=True)
        return
    assert torch.equal(greedy(model, golden, collapse), golden.arrays["greedy_cfg"][0].long())


@torch.inference_mode()
@pytest.mark.parametrize("name", ["tar_ar_dtok", "tar_ar_dtok_slot"])
def test_tars_golden_values_are_those_of_its_formulas(name: str) -> None:
    """Those of "first" are the public class's own: that the same formulas give them vouches for those of "slot"."""
    golden = load_golden(name)
    found = branches(golden, golden.arrays["tokens"][0, :-1], golden.image_positions)
    for branch, logits_of_branch in zip(("cond", "uncond"), found, strict=True):
        assert float((logits_of_branch[golden.rows] - golden.arrays[f"logits_{branch}"]).abs().max()) <= 2e-5
    guided = found[1] + (found[0] - found[1]) * 4.0
    assert int(guided[0].argmax()) == int(golden.arrays["greedy_cfg"][0, 0])


@torch.inference_mode()
def test_tar_positions_go_on_behind_the_prefix(tmp_path: Path) -> None:
    """Against the golden model with its own table rolled: what a slot gets is the row of that very slot."""
    golden = load_golden("tar_ar_dtok")
    pe = golden.state["abs_pe"]
    torch.manual_seed(0)
    pe[:, 169:] = torch.randn_like(pe[:, 169:])
    torch.save(golden.state, tmp_path / "a.pt")
    model = load_ar(tmp_path / "a.pt", heads=2)
    # The same rows added to the token embeddings by hand: 64 tokens that are all different take their places.
    tokens = torch.arange(64)[None]
    state = dict(golden.state)
    state["tok_embeddings.weight"] = state["tok_embeddings.weight"].clone()
    state["tok_embeddings.weight"][:63] += pe[0, 169:]
    state["abs_pe"] = torch.cat([pe[:, :169], torch.zeros_like(pe[:, 169:])], dim=1)
    torch.save(state, tmp_path / "b.pt")
    by_hand = load_ar(tmp_path / "b.pt", heads=2)
    a, b = (logits(m, golden.condition, tokens) for m in (model, by_hand))
    assert torch.allclose(a, b, atol=1e-4)
    # Trained weights want the rows of the slots: that is what a file gets unless it is asked otherwise.
    first = load_ar(tmp_path / "a.pt", heads=2, image_positions="first")
    assert float((logits(first, golden.condition, tokens) - a).abs().max()) > 0.1
    with pytest.raises(ValueError, match="image_positions must be one of slot, first"):
        load_ar(tmp_path / "a.pt", heads=2, image_positions="last")
    with pytest.raises(ValueError, match="this model has 232"):
        logits(model, torch.randn(1, 230, 1152), tokens)


@torch.inference_mode()
def test_vq16(tmp_path: Path) -> None:
    golden = load_golden("vq16")
    state = {**golden.state, "quantize.codebook_used": torch.zeros(65536)}
    torch.save({"model": state}, tmp_path / "vq.pt")
    vq = load_vq(tmp_path / "vq.pt")
    assert torch.equal(vq.encode(golden.arrays["image"]), golden.arrays["indices"])
    assert float((vq.decode(golden.arrays["tokens"]) - golden.arrays["decoded"]).abs().max()) <= TOLERANCE
    assert sum(p.numel() for p in vq.parameters()) == 71_883_403
