"""The layouts that official scorers read, prompts that are checked, and scorers that are called."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mulosd.engine.decoding import Serial
from mulosd.engine.engine import Engine
from mulosd.engine.random_family import random_family
from mulosd.measure.protocols import make_protocol, run_protocol
from mulosd.measure.protocols.base import Protocol

SIDE = 16
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "apple", "count": 1}], "prompt": "red apple"},
    {"tag": "colors", "include": [{"class": "pear", "count": 1, "color": "blue"}], "prompt": "blue pear"},
]
STYLES = ("anime", "concept-art", "paintings", "photo")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(random_family())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("hpsv2", "cleanfid", "cleanfid.fid", "torch_fidelity"):
        monkeypatch.setitem(sys.modules, name, None)
    return tmp_path


def geneval(here: Path) -> Path:
    path = here / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in GENEVAL))
    return path


def dpg(here: Path) -> Path:
    (here / "prompts").mkdir()
    (here / "prompts" / "COCOval2014_7.txt").write_text("red apple\n")
    (here / "prompts" / "0.txt").write_text("blue pear")
    return here / "prompts"


def coco(here: Path) -> Path:
    path = here / "captions_val2014.json"
    captions = [(42, 9, "red\napple "), (42, 8, "a pear"), (139, 3, "blue apple"), (7, 1, "red pear")]
    annotations = [{"image_id": image, "id": i, "caption": caption} for image, i, caption in captions]
    path.write_text(json.dumps({"images": [{"id": 42}], "annotations": annotations}))
    return path


def hpsv2(here: Path) -> Path:
    folder = here / "benchmark"
    folder.mkdir()
    for n, style in enumerate(STYLES):
        (folder / f"{style}.json").write_text(json.dumps(["red apple", "blue pear"][: 1 + n % 2]))
    return folder


OFFICIAL: dict[str, Callable[[Path], Path]] = {"geneval": geneval, "dpg": dpg, "coco-fid": coco, "hpsv2": hpsv2}


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(engine: Engine, protocol: Protocol, **how: Any) -> dict[str, Any]:
    return run_protocol(engine, protocol, ["serial"], Path("out"), seed=3, batch_size=8, **how)


LAYOUTS = {
    "geneval": [
        "00000/metadata.jsonl", *(f"00000/samples/0000{n}.png" for n in range(4)),
        "00001/metadata.jsonl", *(f"00001/samples/0000{n}.png" for n in range(4)),
    ],
    "dpg": ["0.png", "COCOval2014_7.png"],
    "coco-fid": ["139.png", "42.png", "7.png"],
    "hpsv2": [
        "anime/00000.jpg", "concept-art/00000.jpg", "concept-art/00001.jpg", "paintings/00000.jpg",
        "photo/00000.jpg", "photo/00001.jpg",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layout_is_that_of_the_scorer(engine: Engine, here: Path, name: str) -> None:
    report = run(engine, make_protocol(name, OFFICIAL[name](here)))
    folder = here / "out" / "images" / "serial"
    assert tree(folder) == LAYOUTS[name], "and nothing beside it, which scorers would take for pictures"
    for file in folder.rglob("*.*g"):
        with Image.open(file) as image:
            assert image.format == ("JPEG" if file.suffix == ".jpg" else "PNG")
            assert image.size == ((2 * SIDE, 2 * SIDE) if name == "dpg" else (SIDE, SIDE))
            assert image.mode == "RGB"
    assert report["rows"][0]["forwards"]["serial"] > 0
    assert report == json.loads((here / "out" / "report.json").read_text())
    assert "the scores are not those that are published" in report["notes"][0]
    assert report["rows"][0]["scores"] is None


def test_pictures_are_those_of_prompt_and_seed(engine: Engine, here: Path) -> None:
    run(engine, make_protocol("geneval", geneval(here)))
    second = engine.generate("blue pear", decoder=Serial(), seed=3 + 4, num_images=4)
    folder = here / "out" / "images" / "serial" / "00001"
    for n, image in enumerate(second.images):
        assert np.array_equal(Image.open(folder / "samples" / f"{n:05d}.png"), image)
    assert json.loads((folder / "metadata.jsonl").read_text()) == GENEVAL[1]


def test_dpg_lays_four_pictures_two_by_two(engine: Engine, here: Path) -> None:
    report = run(engine, make_protocol("dpg", dpg(here)))
    first = engine.generate("blue pear", decoder=Serial(), seed=3, num_images=4).images
    sheet = Image.open(here / "out" / "images" / "serial" / "0.png")
    for n, (left, top) in enumerate([(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)]):
        assert np.array_equal(sheet.crop((left, top, left + SIDE, top + SIDE)), first[n])
    assert f"dist_eval.sh 'out/images/serial' {SIDE};" in report["notes"][-1], "the scorer cuts at the side"


def test_coco_takes_the_first_caption_of_each_image_in_one_order(here: Path) -> None:
    path = coco(here)
    items = {item.key: item.prompt for item in make_protocol("coco-fid", path).items}
    assert items == {"42": "a pear", "139": "blue apple", "7": "red pear"}
    assert list(items) == [item.key for item in make_protocol("coco-fid", path).items]
    assert [item.key for item in make_protocol("coco-fid", path, limit=2).items] == list(items)[:2]


def test_complete_pictures_are_kept(engine: Engine, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = make_protocol("geneval", geneval(here))

    def run() -> None:
        run_protocol(engine, protocol, ["serial"], Path("out"), seed=3, batch_size=4)

    run()
    folder = here / "out" / "images" / "serial"
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    gone = folder / "00001" / "samples" / "00002.png"
    before = gone.read_bytes()
    gone.unlink()
    asked: list[str] = []
    generate = engine.generate

    def counted(prompts: list[str], **options: Any) -> Any:
        asked.extend(prompts)
        return generate(prompts, **options)

    monkeypatch.setattr(engine, "generate", counted)
    run()
    assert asked == ["blue pear"] * 4
    assert gone.read_bytes() == before
    first = [file for file in kept if file.parts[-3] == "00000"]
    assert all(file.stat().st_mtime_ns == kept[file] for file in first)
    with pytest.raises(ValueError, match="differs in seed"):
        run_protocol(engine, protocol, ["serial"], Path("out"), seed=4, batch_size=4)


def test_clean_fid_is_called(engine: Engine, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def compute_fid(*folders: str, **how: Any) -> np.float64:
        assert all(any(Path(folder).iterdir()) for folder in folders)
        calls.append((folders, how))
        return np.float64(12.5)

    monkeypatch.setitem(sys.modules, "cleanfid", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cleanfid.fid", SimpleNamespace(compute_fid=compute_fid))
    real = here / "val2014"
    real.mkdir()
    Image.new("RGB", (9, 9)).save(real / "a.jpg")
    path = coco(here)
    report = run(engine, make_protocol("coco-fid", path, str(real)))
    assert report["rows"][0]["scores"] == {"FID": 12.5}
    assert "clean-fid, mode clean" in report["notes"][-1]
    run(engine, make_protocol("coco-fid", path, "stats:val2014"))
    cpu = {"mode": "clean", "num_workers": 0, "device": torch.device("cpu"), "use_dataparallel": False}
    assert calls == [
        (("out/images/serial", str(real)), cpu),
        (("out/images/serial",), {**cpu, "dataset_name": "val2014", "dataset_split": "custom"}),
    ]


def test_torch_fidelity_stands_in(engine: Engine, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def calculate_metrics(**how: Any) -> dict[str, float]:
        calls.append(how)
        return {"frechet_inception_distance": 3.0}

    path = coco(here)
    protocol = make_protocol("coco-fid", path, str(here))
    assert "pip install clean-fid" in run(engine, protocol)["notes"][-1]
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=calculate_metrics))
    assert run(engine, protocol)["rows"][0]["scores"] == {"FID": 3.0}
    assert calls == [{"input1": "out/images/serial", "input2": str(here), "fid": True, "cuda": False}]
    assert "pip install clean-fid" in run(engine, make_protocol("coco-fid", path, "stats:x"))["notes"][-1]
    assert "--reference" in run(engine, make_protocol("coco-fid", path))["notes"][-1]


def test_hpsv2_is_called_and_its_print_is_read(engine: Engine, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(path: str, batch_size: int = 20, hps_version: str = "") -> None:
        assert sorted(p.name for p in Path(path).iterdir()) == list(STYLES)
        assert hps_version == "v2.1"
        model = path.split("/")[-1]
        # As evaluate_benchmark of the package prints it.
        print("Loading model ...\n-----------benchmark score ---------------- ")
        for n, style in enumerate(STYLES):
            print(model, f"{style:<15}", f"{27.5 + n:.2f}", "\t", f"{0.1:.4f}")
        print(model, "{:<15}".format("Average"), "29.00", "\t")

    monkeypatch.setitem(sys.modules, "hpsv2", SimpleNamespace(evaluate=evaluate))
    report = run(engine, make_protocol("hpsv2", hpsv2(here)))
    expected = {"anime": 27.5, "concept-art": 28.5, "paintings": 29.5, "photo": 30.5, "Average": 29.0}
    assert report["rows"][0]["scores"] == expected


def test_a_scorer_that_fails_leaves_the_report_of_the_drawing(
    engine: Engine, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hpsv2", SimpleNamespace(evaluate=lambda *_, **__: print("nothing")))
    with pytest.raises(RuntimeError, match="printed no scores"):
        run(engine, make_protocol("hpsv2", hpsv2(here)))
    assert json.loads((here / "out" / "report.json").read_text())["rows"][0]["scores"] is None


@pytest.mark.parametrize("name", OFFICIAL)
def test_prompts_that_are_not_the_official_ones_are_refused_with_their_source(here: Path, name: str) -> None:
    source = {"geneval": "djghosh13/geneval", "dpg": "TencentQQGYLab/ELLA", "coco-fid": "cocodataset.org",
              "hpsv2": "zhwang/HPDv2"}[name]  # fmt: skip
    (here / "empty").mkdir()
    (here / "mine.txt").write_text("a cat\n")
    (here / "list.json").write_text("[1, 2]")
    for file in ("none", "empty", "mine.txt", "list.json"):
        with pytest.raises(ValueError, match=source):
            make_protocol(name, here / file)


def test_other_mistakes(here: Path) -> None:
    with pytest.raises(ValueError, match="geneval, dpg, coco-fid, hpsv2"):
        make_protocol("gen", here)
    with pytest.raises(ValueError, match="no meaning for --protocol dpg"):
        make_protocol("dpg", dpg(here), "real/")
    with pytest.raises(ValueError, match=r"val2014\.zip"):
        make_protocol("coco-fid", coco(here), "nowhere")
    folder = hpsv2(here)
    (folder / "photo.json").write_text('["a", ""]')
    with pytest.raises(ValueError, match="no list of prompts"):
        make_protocol("hpsv2", folder)
