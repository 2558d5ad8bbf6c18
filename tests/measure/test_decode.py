"""The decoding benchmark with an engine that draws real scenes and makes known mistakes."""

from __future__ import annotations

import io
import json
import random
import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mulosd
from mulosd.data.family import scene_config, sprites
from mulosd.data.scenes import COUNTS, RELATIONS, Renderer, Scene, scenes
from mulosd.data.sprites import Sprites
from mulosd.engine.atomic import write_json
from mulosd.engine.decoding.mulo import MuloSD
from mulosd.engine.engine import Engine
from mulosd.engine.family import Family
from mulosd.engine.family_config import Calibration, FamilyConfig
from mulosd.engine.models.ar_model import ARModel
from mulosd.engine.models.text import Vocabulary
from mulosd.engine.random_family import random_family
from mulosd.engine.sampling import SamplingParams
from mulosd.engine.stats import GenerationStats
from mulosd.measure import judge as judge_module
from mulosd.measure.ceilings import Ceilings
from mulosd.measure.decode import bench_decode, bench_table, plan_rows
from mulosd.measure.prompts import held_out_prompts, read_prompts
from mulosd.measure.readers.objects import Reader, read_background

FOLDER = Path(mulosd.__file__).parent / "families" / "emoji"
COLOURS = {"blue": (122, 170, 222), "white": (250, 250, 250), "gray": (150, 156, 166)}


class FakeFamily:
    """What the benchmark asks of a family, on the bundled sprites and reader."""

    name, path, grids, image_sizes, scales = "fake", FOLDER, (8, 16, 32), (64, 128, 256), (2, 4)
    device = torch.device("cpu")
    quantization = None
    sampling = SamplingParams()
    upsampler, eagle = "latent", None
    calibration, scale = Family.calibration, Family.scale

    def __init__(self) -> None:
        names = Sprites.load(FOLDER / "sprites.png").names
        found = Calibration(4, "latent", pool=10, radius=1, tau=0.08)
        scenes = {"objects": {name: name + "s" for name in names}, "backgrounds": COLOURS}
        self.config = FamilyConfig("fake", calibrations={found.key: found}, facts={"scenes": scenes})
        self.ar = random_family(self.grids, vocab_size=512).ar
        self.models = [self.ar]
        words = [(n, n + "s") for n in names] + [(c,) for c in COLOURS]
        words += [(r.removesuffix(" of"),) for r in RELATIONS] + [(c,) for c in COUNTS.values()]
        phrases = {phrase: 3 + i for i, both in enumerate(words) for phrase in both}
        self.vocabulary = Vocabulary(phrases, frozenset({"a", "an", "and", "on", "of", "background"}))
        self.tokenizer = SimpleNamespace(encode=self._remember)

    def model(self, grid: int) -> ARModel:
        return self.ar

    def drafter_grid(self, scale: int) -> int:
        if scale not in self.scales:
            raise ValueError(f"no scale {scale}")
        return 32 // scale

    def _remember(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded = images
        return torch.zeros(len(images), 32, 32, dtype=torch.int64)


class FakeEngine:
    """Draws the asked scene; draft-only loses the first object, mulo loses it for every fourth seed."""

    def __init__(self, family: Any) -> None:
        self.family, self.calls = family, []
        self.renderer = Renderer(scene_config(family), sprites(family))

    def generate(self, prompts: list[str], *, decoder: Any, sampling: Any, seed: list[int], batch_size: int = 8) -> Any:
        self.calls.append((decoder.name, len(prompts), tuple(seed)))
        images = []
        for prompt, s in zip(prompts, seed, strict=True):
            scene = self.find(prompt)
            if decoder.name == "draft-only" or (decoder.name == "mulo" and s % 4 == 0):
                scene = Scene(scene.objects[1:], scene.cells[1:], scene.background, "", "", "")
            images.append(Image.fromarray(self.renderer.render(scene, 256)))
        shares = (0.02, 0.1) if decoder.name == "mulo" else (None, None)
        # Slowness by decoder without waiting for it would need a fake clock; the figures' shape is what is tested.
        stats = [
            GenerationStats(decoder.name, decoder.settings(), s, len(prompts), {"verify": 1, "draft": 64},
                            {"verify": 1024}, {"total": 0.1}, *shares)
            for s in seed
        ]  # fmt: skip
        quality = {"serial": 1, "mulo": 2, "draft-only": 3}[decoder.name]
        return SimpleNamespace(
            images=images, stats=stats, tokens=torch.full((len(prompts), 32, 32), quality), resampled=None
        )

    def check_prompts(self, prompts: list[str]) -> list[str]:
        return [f"unknown words in {p!r}" for p in prompts if self.family.vocabulary.parse(p)[1]]

    def find(self, prompt: str) -> Scene:
        # Seeds are fixed, so the scene of a caption is found again by drawing.
        return next(s for s in scenes(self.renderer.config, 5, held_out=True) if s.caption == prompt)

    def to_images(self, tokens: torch.Tensor) -> list[Image.Image]:
        array = ((self.family.encoded.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return [Image.fromarray(a) for a in array]

    def nll(self, prompts: list[str], tokens: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        assert len(seeds) == len(prompts)
        return tokens.float().mean(dim=(1, 2)) + torch.arange(len(prompts)) * 0.01


class CheapFeatures:
    """Colour statistics in place of a network, to keep the test small."""

    def __init__(self, device: str = "cpu") -> None:
        pass

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images[:, ::32, ::32].reshape(len(images), -1).astype(np.float32) / 255


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(FakeFamily())


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "Lite0Features", CheapFeatures)


def rows_of(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["decoder"] == name]


def test_the_bundled_reader_reads_unseen_real_scenes() -> None:
    family = FakeFamily()
    config, renderer = scene_config(family), Renderer(scene_config(family), sprites(family))
    some = list(islice(scenes(config, 77, True), 96))
    images = np.stack([renderer.render(s, 256) for s in some])
    read = Reader.load(FOLDER / "reader.safetensors", sprites(family).names).read(images)
    truth = [sorted(zip(s.objects, s.cells, strict=True)) for s in some]
    right = [sorted((r.name, (r.row, r.col)) for r in found) == t for found, t in zip(read, truth, strict=True)]
    assert np.mean(right) > 0.97
    assert read_background(images, COLOURS) == [s.background for s in some]


def test_the_report_has_the_agreed_keys_and_tells_good_from_bad(
    engine: FakeEngine, cheap: None, tmp_path: Path
) -> None:
    prompts = held_out_prompts(engine, 12, seed=5)
    seen: list[tuple[str, int, int]] = []
    report = bench_decode(
        engine, prompts, ["serial", "draft-only", "mulo"], seed=3, real_scenes=16, progress=lambda *a: seen.append(a)
    )
    assert {"device", "versions", "commit", "family", "rows"} <= report.keys()
    assert [row["decoder"] for row in report["rows"]] == ["serial", "draft-only", "mulo", "mulo", "mulo", "mulo"]
    assert [row["settings"]["tau"] for row in rows_of(report, "mulo")] == pytest.approx([0.08, 0.127, 0.202, 0.32])
    for row in report["rows"]:
        assert {
            "decoder", "settings", "seconds_per_image", "forwards", "rejection", "coverage", "nll", "accuracy", "kid",
        } <= row.keys()  # fmt: skip
        assert row["seconds_per_image"].keys() >= {"median", "p20", "p80", "runs"}
        assert row["seconds_per_image"]["runs"] == 12
        assert {"value", "ci95"} <= row["accuracy"].keys()
        assert row["kid"].keys() == {"value", "std"}
    serial, draft, mulo = (rows_of(report, name)[0] for name in ("serial", "draft-only", "mulo"))
    assert serial["accuracy"]["value"] == 1.0
    assert draft["accuracy"]["value"] < mulo["accuracy"]["value"] < 1.0
    # Each mistake costs a scene its first object, and so the whole scene.
    assert [row["scenes"]["value"] for row in (serial, draft, mulo)] == pytest.approx([1.0, 0.0, 0.75])
    assert all(row["scenes"]["ci95"][0] <= row["scenes"]["value"] <= row["scenes"]["ci95"][1] for row in (draft, mulo))
    assert mulo["paired"]["serial"]["scenes"]["value"] == pytest.approx(-0.25)
    assert (serial["rejection"], mulo["rejection"], mulo["coverage"]) == (None, pytest.approx(0.02), pytest.approx(0.1))
    assert serial["forwards"] == {"verify": 1.0, "draft": 64.0}
    assert serial["nll"] < mulo["nll"] < draft["nll"]
    assert mulo["paired"]["serial"]["accuracy"]["value"] == pytest.approx(mulo["accuracy"]["value"] - 1)
    assert mulo["paired"]["draft-only"]["nll"]["value"] == pytest.approx(-1)
    assert "serial" not in serial["paired"]
    assert report["reader"]["accuracy_real"] > 0.97
    assert report["reconstruction"]["accuracy"]["value"] == report["reader"]["accuracy_real"]
    assert report["notes"] == []
    assert Ceilings.from_dict(report["ceilings"]).to_dict() == report["ceilings"]
    assert all(row["floor"]["share"] == row["floor"]["seconds"] / row["seconds_per_image"]["median"] > 0
               for row in report["rows"])  # fmt: skip
    assert seen[-1] == ("quality", 6, 6)
    assert max(done for what, done, total in seen if what != "quality") == 72

    path = tmp_path / "report.json"
    write_json(path, report)
    assert json.loads(path.read_text()) == report
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(bench_table(report))
    text = console.export_text()
    assert "draft-only" in text and "Measured ceilings" in text
    assert "mulo τ0.3" in text
    assert "75 (47-91)" in text, "scenes with Wilson's interval of 9 in 12"


def test_decoders_take_turns_with_the_same_seeds_and_batches_are_not_timed(engine: FakeEngine, cheap: None) -> None:
    prompts = held_out_prompts(engine, 9, seed=5)
    report = bench_decode(
        engine,
        prompts,
        ["mulo", "serial"],
        {"mulo": [0.1]},
        seed=2,
        timing_images=2,
        batch_for_quality=4,
        real_scenes=4,
    )
    names = [name for name, _, _ in engine.calls]
    assert names == ["mulo", "serial"] * (len(names) // 2)
    timed = [seeds for name, n, seeds in engine.calls[2:12] if name == "mulo"]
    assert timed == [(2,), (3,), (2,), (3,), (2,)], "two prompts make five runs by taking turns"
    assert [seeds for name, _, seeds in engine.calls[12:] if name == "mulo"] == [(4, 5, 6, 7), (8, 9, 10)]
    assert report["timing"]["runs"] == 5
    assert report["rows"][0]["accuracy"]["prompts"] == 9


def test_what_is_missing_is_null_and_said(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = held_out_prompts(engine, 2, seed=5)

    def missing(device: str) -> None:
        raise ImportError("pip install 'mulosd[bench]'")

    monkeypatch.setattr(judge_module, "Lite0Features", missing)
    shutil.copy(FOLDER / "sprites.png", tmp_path)
    monkeypatch.setattr(engine.family, "path", tmp_path)
    report = bench_decode(engine, prompts, ["serial"], real_scenes=4)
    assert report["rows"][0]["kid"] is None
    assert report["rows"][0]["accuracy"] is None
    assert report["reader"] is None
    notes = " ".join(report["notes"])
    assert "mulosd[bench]" in notes
    assert "there is no reader" in notes
    bench_table(report)

    monkeypatch.delitem(engine.family.config.facts, "scenes")
    report = bench_decode(engine, prompts, ["serial"])
    assert "not trained on scenes" in report["notes"][0]
    assert report["kid_real"] is None
    json.dumps(report, allow_nan=False)


def test_the_real_engine_fits() -> None:
    engine = Engine(random_family())
    with pytest.raises(ValueError, match="prompt is empty"):
        bench_decode(engine, ["red apple", " "], ["serial"])
    mulo = MuloSD(scale=2, tau=0.05, radius=0, pool=3)
    names = ["serial", "draft-only", "mulo"]
    report = bench_decode(
        engine, ["red apple", "blue pear"], names, mulo=mulo, sweeps={"mulo": [0.0, 2.0]}, timing_images=1
    )
    serial, draft, accept_all, accept_none = report["rows"]
    assert (accept_all["rejection"], accept_none["rejection"]) == (0.0, 1.0)
    assert accept_all["nll"] == pytest.approx(draft["nll"]), "tau = 0 is draft-only"
    assert accept_none["nll"] == pytest.approx(serial["nll"]), "tau above 1 is serial"
    assert serial["forwards"]["serial"] == 63
    assert report["notes"][0].startswith("accuracy and kid are null")
    assert "zebra" in bench_decode(engine, ["red zebra"], ["serial"])["notes"][0]


def test_impossible_settings_are_refused_before_any_work(engine: FakeEngine) -> None:
    with pytest.raises(ValueError, match="chosen from serial, draft-only, mulo"):
        bench_decode(engine, ["a cat"], ["medusa"])
    with pytest.raises(ValueError, match="at least one prompt"):
        bench_decode(engine, [])
    with pytest.raises(ValueError, match="at least one value of tau"):
        bench_decode(engine, ["a cat"], ["mulo"], {"mulo": []})
    with pytest.raises(ValueError, match="not calibrated"):
        bench_decode(engine, ["a cat"], ["mulo"], mulo=MuloSD(scale=2))
    with pytest.raises(ValueError, match="timing_images"):
        bench_decode(engine, ["a cat"], timing_images=0)
    assert engine.calls == []


def test_rows_share_the_settings_of_mulo(engine: FakeEngine) -> None:
    base = MuloSD(scale=2, tau=0.5, radius=3, pool=4, upsampler="pixel")
    draft, *mulos = plan_rows(engine.family, ["draft-only", "mulo"], None, base)
    assert draft.settings() == {"scale": 2, "upsampler": "pixel", "draft_window": None, "draft_guesses": None}
    assert [m.settings()["tau"] for m in mulos] == pytest.approx([0.5, 0.794, 1.26, 2.0], rel=1e-3)
    assert {m.settings()["radius"] for m in mulos} == {3}


def test_prompts_are_held_out_distinct_and_repeatable(engine: FakeEngine) -> None:
    prompts = held_out_prompts(engine, 40, seed=1)
    assert len(set(prompts)) == 40
    assert prompts == held_out_prompts(engine, 40, seed=1)
    assert prompts != held_out_prompts(engine, 40, seed=2)
    trained_on = {s.caption for s in islice(scenes(scene_config(engine.family), 1, held_out=False), 3000)}
    assert not trained_on & set(prompts)
    with pytest.raises(ValueError, match="at least 1"):
        held_out_prompts(engine, 0)


def test_prompts_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  two dogs \n", encoding="utf-8")
    assert read_prompts(file) == ["a cat", "two dogs"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(file)
    with pytest.raises(ValueError, match="no file"):
        read_prompts(tmp_path / "absent.txt")


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"nll": random.Random(0).random()})
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"nll": float("nan")})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
