"""Converted families: every decoder draws with them, and what the cache computes is what the model defines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mulosd.checkpoints import load_ar, load_ta_tok, load_vq, logits
from mulosd.checkpoints.convert import convert_llamagen, convert_tar
from mulosd.engine.calibrate import calibrate
from mulosd.engine.conditioning import CaptionConditioner, ClassConditioner, Condition, DialectConditioner
from mulosd.engine.conditioning.captions import clean
from mulosd.engine.decoding import DraftOnly, Jacobi, MuloSD, Serial, ZipAR
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.scheduler import SchedulerConfig

KINDS = ("class", "caption", "tar")
SAMPLING = SamplingParams(cfg_scale=2.0, top_k=20)


@pytest.fixture(scope="module")
def folders(files: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("families")
    made = {
        name: convert_llamagen(
            files[f"{stem}_8.pt"], files["vq.pt"], out / name, drafter=files[f"{stem}_4.pt"], heads=2
        )
        for name, stem in (("class", "c2i"), ("caption", "t2i"))
    }
    ar = {2 * grid: files[f"tar_{grid}.pth"] for grid in (4, 8)}
    made["tar"] = convert_tar(ar, files["ta_tok.pth"], files["vq.pt"], out / "tar")
    return made


@pytest.fixture(params=KINDS)
def folder(folders: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return folders[request.param]


def conditions(family: Family, n: int = 2) -> Condition:
    """Precomputed conditions of a family; captions of different lengths."""
    g = torch.Generator().manual_seed(0)
    if isinstance(family.conditioner, ClassConditioner):
        return family.condition([str(i) for i in range(n)])
    if isinstance(family.conditioner, CaptionConditioner):
        return family.conditioner.padded([torch.randn(5 + 7 * i, 2048, generator=g) for i in range(n)])
    return family.conditioner.precomputed(torch.randint(32, (n, 81), generator=g))


def draw(folder: Path, decoder: Any, sampling: SamplingParams = SAMPLING, **options: Any) -> Tensor:
    engine = Engine.from_pretrained(folder, **options)
    names = ["0", "1"]
    return engine.generate(names, decoder=decoder, sampling=sampling, seed=5, features=conditions(engine.family)).tokens


def reference(folder: Path, sampling: SamplingParams) -> Tensor:
    """Serial decoding with the definition: one whole forward of the model for each token, no cache."""
    from mulosd.engine.runner import sample
    from mulosd.engine.sampling import Logits, Noise, Purpose

    family = Family.load(folder)
    given, drawn = conditions(family), []
    with torch.inference_mode():
        for i in range(2):
            tokens = torch.zeros(1, 64, dtype=torch.int64)
            mask = None if given.mask is None else given.mask[i : i + 1]
            noise = Noise(5, 64, Purpose.TARGET, tokens.device)
            for at in range(64):
                cond = family.ar(given.features[i : i + 1], tokens[:, : at + 1], 8, mask)[0, -1:]
                uncond = family.ar(family.null_features(1), tokens[:, : at + 1], 8, mask)[0, -1:]
                tokens[0, at] = sample(Logits(cond, uncond), [noise], [[at]], sampling)[0]
            drawn.append(tokens.view(8, 8))
    return torch.stack(drawn)


def test_serial_is_what_the_model_defines(folder: Path) -> None:
    assert torch.equal(draw(folder, Serial()), reference(folder, SAMPLING))


@pytest.mark.parametrize(
    "decoder",
    [
        MuloSD(tau=2.0, radius=1, pool=2, scale=2),
        ZipAR(window=8),
        Jacobi(window=8),
    ],
    ids=lambda d: d.name,
)
def test_lossless_settings_give_the_serial_tokens(folder: Path, decoder: Any) -> None:
    assert torch.equal(draw(folder, decoder), draw(folder, Serial()))


def test_lossy_settings_draw_and_differ(folder: Path) -> None:
    serial = draw(folder, Serial())
    mulo = draw(folder, MuloSD(tau=0.02, radius=1, pool=4, window=2, draft_window=2, scale=2))
    assert mulo.shape == serial.shape and not torch.equal(mulo, serial)
    draft = draw(folder, DraftOnly())
    assert torch.equal(draft, draw(folder, MuloSD(tau=0.0, radius=1, pool=1, scale=2)))


@pytest.mark.parametrize("kind", ["class", "caption"])
def test_a_collapsed_prefix_changes_nothing(folders: dict[str, Path], kind: str) -> None:
    collapsed = SchedulerConfig(collapse_prefix=True)
    decoder = MuloSD(tau=0.05, radius=1, pool=4, window=2, scale=2)
    for one in (Serial(), decoder):
        assert torch.equal(draw(folders[kind], one), draw(folders[kind], one, config=collapsed))
    engine = Engine.from_pretrained(folders[kind], config=collapsed)
    need = engine.scheduler.bytes_of(Serial(), 2)
    assert need == 2 * 2 * 2 * (1 + 64) * 32 * 4
    with pytest.raises(ValueError, match="cannot be collapsed"):
        draw(folders["tar"], Serial(), config=collapsed)


def test_guidance_ends_where_the_interval_does(folders: dict[str, Path]) -> None:
    """Positions 0 to c + 1 are guided; with c behind the grid all are, and the tokens before the end are the same."""
    whole, plain = draw(folders["class"], Serial()), draw(folders["class"], Serial(), replace(SAMPLING, cfg_scale=1.0))
    cut = draw(folders["class"], Serial(), replace(SAMPLING, cfg_interval=20))
    assert torch.equal(cut.flatten(1)[:, :22], whole.flatten(1)[:, :22])
    assert not torch.equal(cut, whole) and not torch.equal(cut, plain)
    assert torch.equal(draw(folders["class"], Serial(), replace(SAMPLING, cfg_interval=62)), whole)
    assert torch.equal(cut, reference(folders["class"], replace(SAMPLING, cfg_interval=20)))
    for decoder in (MuloSD(tau=2.0, radius=1, pool=2, scale=2), Jacobi(window=8)):
        assert torch.equal(draw(folders["class"], decoder, replace(SAMPLING, cfg_interval=20)), cut)


def test_guidance_in_the_type_of_the_model() -> None:
    from mulosd.engine.sampling import Logits

    g = torch.Generator().manual_seed(0)
    cond, uncond = (torch.randn(3, 50, generator=g).bfloat16() for _ in range(2))
    params = SamplingParams(cfg_scale=4.0, temperature=0.7, cfg_in_model_dtype=True)
    found, left = params.prepare(Logits(cond.float(), uncond.float(), torch.bfloat16), [0, 1, 2])
    assert torch.equal(found.cond, ((uncond + (cond - uncond) * 4.0) / 0.7).float()) and found.uncond is None
    assert left.temperature == 1.0 and not torch.equal(found.cond, torch.lerp(uncond.float(), cond.float(), 4.0) / 0.7)


def test_the_prompts_of_a_batch_do_not_touch_each_other(folder: Path) -> None:
    together = draw(folder, Serial())
    engine = Engine.from_pretrained(folder)
    given = conditions(engine.family)
    alone = [
        engine.generate("x", decoder=Serial(), sampling=SAMPLING, seed=5, features=given[i : i + 1]).tokens
        for i in range(2)
    ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_keeps_the_logits(folders: dict[str, Path], files: Any, dtype: torch.dtype) -> None:
    tokens = torch.randint(64, (2, 64), generator=torch.Generator().manual_seed(3))
    for kind, stem in (("class", "c2i_8.pt"), ("caption", "t2i_8.pt"), ("tar", "tar_8.pth")):
        given = conditions(Family.load(folders[kind]))
        cond = given.features[:, 0, 0] if kind == "class" else given.features
        released = load_ar(files[stem], heads=2, dtype=dtype)
        wanted = logits(released, cond, tokens, given.mask)
        for path in (folders[kind], folders[kind] / "ar-8.safetensors"):
            assert torch.equal(logits(load_ar(path, dtype=dtype), cond, tokens, given.mask), wanted)
        assert load_ar(folders[kind], grid=4).config.grids == (4,)
        assert {p.dtype for p in released.parameters()} == {dtype}


def test_fewer_tokens_than_a_grid(folders: dict[str, Path], files: Any) -> None:
    tokens = torch.randint(64, (1, 16), generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([3])
    whole = logits(load_ar(folders["class"]), ids, torch.cat([tokens, torch.zeros(1, 48, dtype=torch.int64)], dim=1))
    # A converted model knows its grid: 16 tokens are two rows of it. A released file does not.
    assert torch.allclose(logits(load_ar(folders["class"]), ids, tokens), whole[:, :16], atol=1e-5)
    released = load_ar(files["c2i_8.pt"], heads=2)
    assert torch.allclose(logits(released, ids, tokens, grid=8), whole[:, :16], atol=1e-5)
    assert not torch.allclose(logits(released, ids, tokens), whole[:, :16], atol=1e-2)
    for wrong in (tokens[:, :15], tokens[0]):
        with pytest.raises(ValueError, match="fill a square grid"):
            logits(released, ids, wrong)
    with pytest.raises(ValueError, match=r"class ids int64 \[B\] = \[1\]"):
        logits(released, torch.zeros(1, 120, 2048), tokens)


def test_weights_are_stored_narrower_where_asked(files: Any, tmp_path: Path) -> None:
    made = convert_llamagen(files["c2i_8.pt"], files["vq.pt"], tmp_path / "half", heads=2, dtype=torch.bfloat16)
    whole = load_ar(files["c2i_8.pt"], heads=2).state_dict()
    stored = load_ar(made / "ar.safetensors").state_dict()
    assert all(torch.equal(stored[k], whole[k].bfloat16().float()) for k in whole)
    size = (made / "ar.safetensors").stat().st_size
    assert size < sum(2 * t.numel() for t in whole.values()) + 4096


def test_a_vq_of_fewer_levels_is_recognised(tmp_path: Path) -> None:
    """VQ-8 has one level less than VQ-16."""
    from mulosd.engine.models.vq import VQ, VQConfig

    config = VQConfig(64, 8, 32, (32, 32, 64, 96), 2, 3)
    torch.save({"model": VQ(config).state_dict()}, tmp_path / "vq8.pt")
    vq = load_vq(tmp_path / "vq8.pt")
    assert vq.config == config and vq.config.patch == 8
    with torch.inference_mode():
        indices = vq.encode(torch.zeros(1, 3, 32, 16))
        assert indices.shape == (1, 4, 2) and vq.decode(indices).shape == (1, 3, 32, 16)
    with pytest.raises(ValueError, match="multiples of 8"):
        vq.encode(torch.zeros(1, 3, 20, 16))


def test_the_tokenizer_survives_conversion(folders: dict[str, Path], files: Any) -> None:
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        wanted = load_vq(files["vq.pt"])
        for path in (folders["tar"], folders["tar"] / "tokenizer.safetensors"):
            again = load_vq(path)
            assert torch.equal(again.encode(image), wanted.encode(image))
            assert torch.equal(again.decode(wanted.encode(image)), wanted.decode(wanted.encode(image)))


def test_calibration_is_used(folder: Path) -> None:
    engine = Engine.from_pretrained(folder)
    given = conditions(engine.family)
    found = calibrate(engine, ["0", "1"], rejection=0.25, pool=3, seed=1, features=given)
    assert found.upsampler == "pixel" and abs(found.rejection - 0.25) < 0.02
    engine.family.config = replace(engine.family.config, calibrations={found.key: found})
    stats = engine.generate(["0", "1"], seed=1, features=given).stats
    assert abs(sum(s.rejection or 0 for s in stats) / 2 - found.rejection) < 1e-6


def test_prompts_of_classes() -> None:
    conditioner = ClassConditioner(3, ["tench, Tinca tinca", "goldfish", "macaw"])
    assert conditioner.condition(["2", "Tinca Tinca", "goldfish"]).features.flatten().tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match=r"number from 0 to 2, or a name, such as macaw"):
        conditioner.check("a maccaw")
    with pytest.raises(ValueError, match="--class-names"):
        ClassConditioner(3).check("macaw")


def test_caption_features_are_padded_on_the_left() -> None:
    conditioner = CaptionConditioner(6, 4)
    row = torch.arange(1, 9).view(2, 4).float()
    right = torch.cat([row, torch.zeros(4, 4)])[None]
    for given in (row[None], right, right.flip(1).flip(1)):
        found = conditioner.precomputed(given)
        assert torch.equal(found.features[0], torch.cat([torch.zeros(4, 4), row]))
        assert found.mask is not None and found.mask.tolist() == [[False] * 4 + [True] * 2]
    with pytest.raises(ValueError, match="1 <= n <= 6"):
        conditioner.precomputed(torch.ones(1, 7, 4))


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Photo of a Macaw!!!", "a photo of a macaw!"),
        ("cats &amp; dogs <b>big</b> https://a.example/x.png", "cats & dogs big"),
        ("“Hello” — it’s me…", '"hello" - it\'s me.'),
        ("mail me@here.example  @somebody IMG_2041.jpg", "mail"),
    ],
)
def test_captions_are_cleaned(caption: str, cleaned: str) -> None:
    assert clean(caption) == cleaned.strip('"') or clean(caption) == cleaned
    assert clean(clean(caption)) == clean(caption)


def test_tar_conditions(files: Any) -> None:
    conditioner = DialectConditioner(81, load_ta_tok(files["ta_tok.pth"]))
    ids = torch.randint(32, (1, 81), generator=torch.Generator().manual_seed(0))
    answer = "Sure: " + "".join(f"<I{i}>" for i in ids[0].tolist()) + "<im_end>"
    assert torch.equal(conditioner.parse(answer), ids)
    assert conditioner.parse("<I3><I4>")[0, :3].tolist() == [3, 4, 0]
    features = conditioner.precomputed(ids.int()).features
    assert torch.equal(conditioner.precomputed(features).features, features)
    for wrong in (torch.zeros(1, 80, dtype=torch.int64), torch.zeros(1, 81, 47), torch.full((1, 81), 32)):
        with pytest.raises(ValueError, match=r"precomputed conditions|must be in \[0, 32\)"):
            conditioner.precomputed(wrong)
    with pytest.raises(ValueError, match="--llm"):
        conditioner.condition(["a cat"], [0])


def test_a_family_without_its_language_model_says_so(folders: dict[str, Path]) -> None:
    engine = Engine.from_pretrained(folders["tar"])
    with pytest.raises(ValueError, match="--features FILE"):
        engine.generate("a cat", decoder=Serial())
    engine.warmup(Serial())
