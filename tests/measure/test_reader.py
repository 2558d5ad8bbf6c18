"""The reader: decoding of centre maps, files, and that training on renders really teaches it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mulosd
from mulosd.data.scenes import Renderer, SceneConfig, scenes
from mulosd.measure.images import as_array
from mulosd.measure.readers.objects import Reader, ReaderConfig, ReaderNet, find_objects, read_background
from mulosd.train.config import TrainingFile
from mulosd.train.loop import LoopConfig, train
from mulosd.train.reader import ReaderTask, disturb, reader_task, spoil

BUNDLED = Path(mulosd.__file__).parent / "families" / "emoji" / "reader.safetensors"
CONFIG = ReaderConfig(("ball", "box"), cells=8, sprite_cells=3)


def logits_of(marks: dict[tuple[int, int, int], float]) -> torch.Tensor:
    """Logits whose softmax is the given probability at (class, row, col) and "none" elsewhere."""
    p = torch.zeros(1, 3, 8, 8)
    for (k, row, col), share in marks.items():
        p[0, k + 1, row, col] = share
    p[0, 0] = 1 - p[0, 1:].sum(dim=0)
    return (p + 1e-9).log()


def test_peaks_become_objects_with_their_corner_cell() -> None:
    [found] = find_objects(logits_of({(0, 1, 1): 0.9, (1, 6, 4): 0.99}), CONFIG)
    assert [(r.name, r.row, r.col) for r in found] == [("box", 5, 3), ("ball", 0, 0)]
    assert found[1].confidence == pytest.approx(0.9, abs=1e-3)


def test_an_object_between_four_cells_is_one_object() -> None:
    shares = {(0, 3, 3): 0.26, (0, 3, 4): 0.25, (0, 4, 3): 0.25, (0, 4, 4): 0.24}
    [found] = find_objects(logits_of(shares), CONFIG)
    assert [r.name for r in found] == ["ball"]
    assert found[0].confidence > 0.95


def test_probability_of_a_found_object_is_not_used_again() -> None:
    # Shared by two columns; the window around column 5 still contains column 4.
    [found] = find_objects(logits_of({(0, 3, 3): 0.5, (0, 3, 4): 0.5, (0, 3, 5): 0.2}), CONFIG)
    assert len(found) == 1


def test_equal_objects_three_cells_apart_are_two() -> None:
    [found] = find_objects(logits_of({(0, 3, 2): 0.9, (0, 3, 5): 0.8}), CONFIG)
    assert [(r.name, r.col) for r in found] == [("ball", 1), ("ball", 4)]


def test_an_undecided_object_is_not_read() -> None:
    [found] = find_objects(logits_of({(0, 3, 3): 0.4, (1, 3, 3): 0.4}), CONFIG)
    assert found == []
    [found] = find_objects(logits_of({(0, 3, 3): 0.45}), CONFIG)
    assert found == []
    [found] = find_objects(logits_of({(0, 3, 3): 0.45}), CONFIG, threshold=0.4)
    assert len(found) == 1


def test_shapes_and_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, 8, 8\]"):
        find_objects(torch.zeros(1, 4, 8, 8), CONFIG)
    with pytest.raises(ValueError, match="threshold"):
        find_objects(torch.zeros(1, 3, 8, 8), CONFIG, threshold=0)
    with pytest.raises(ValueError, match="distinct"):
        ReaderConfig(("ball", "ball"))
    reader = Reader(ReaderNet(CONFIG))
    with pytest.raises(ValueError, match="uint8"):
        reader.read(np.zeros((1, 256, 256, 3), np.float32))
    with pytest.raises(ValueError, match="at least 128 px"):
        reader.read(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_reader_survives_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = Reader(ReaderNet(CONFIG))
    path = tmp_path / "reader.safetensors"
    reader.save(path)
    again = Reader.load(path, ["box", "ball"])
    assert again.config == CONFIG
    images = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        assert torch.allclose(again.net(images), reader.net(images), atol=2e-2)
    assert path.stat().st_size < 600_000
    with pytest.raises(ValueError, match="does not know \\['violin'\\]"):
        Reader.load(path, ["violin"])
    with pytest.raises(ValueError, match="there is no reader"):
        Reader.load(tmp_path / "other.safetensors")


def test_the_network_is_small() -> None:
    net = ReaderNet(ReaderConfig(tuple(map(str, range(64)))))
    assert sum(p.numel() for p in net.parameters()) <= 250_000


def test_backgrounds_are_read_off_the_border(renderer: Renderer, scene_config: SceneConfig) -> None:
    some = list(islice(scenes(scene_config, 3, False), 60))
    images = np.stack([renderer.render(s, 256) for s in some])
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    assert read_background(noisy, scene_config.backgrounds) == [s.background for s in some]
    with pytest.raises(ValueError, match="named backgrounds"):
        read_background(images, {})


def test_images_become_one_array() -> None:
    array = as_array([Image.new("RGBA", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")])
    assert array.shape == (2, 8, 8, 3)
    assert array[0, 0, 0].tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match="one size"):
        as_array([Image.new("RGB", (8, 8)), Image.new("RGB", (4, 4))])


def test_examples_come_from_the_training_split_and_label_the_shifted_centre(renderer: Renderer) -> None:
    task = ReaderTask(renderer, batch=1, spoiled=0.0)
    seen_shift = False
    for seed in range(200):
        picture, classes = task.example(np.random.default_rng(seed))
        assert picture.shape == (128, 128, 3)
        rows, cols = classes.nonzero()
        assert 1 <= len(rows) <= 3
        for row, col in zip(rows, cols, strict=True):
            # The centre pixel of a ring is background, so look at the whole cell's surroundings.
            around = picture[max(row - 1, 0) * 16 : (row + 2) * 16, max(col - 1, 0) * 16 : (col + 2) * 16]
            assert around.reshape(-1, 3).std(axis=0).max() > 10
            seen_shift |= bool(row in (0, 7) or col in (0, 7))
    assert seen_shift, "shifts of half a cell should carry some centres into the outermost cells"


def test_spoiled_objects_change_and_are_not_labelled(renderer: Renderer, scene_config: SceneConfig) -> None:
    for seed, scene in enumerate(islice(scenes(scene_config, 1, False), 30)):
        picture = renderer.render(scene, 128)
        broken = spoil(picture, scene, 0, renderer, np.random.default_rng(seed))
        (row, col), side = scene.cells[0], 48
        area = np.zeros((128, 128), bool)
        area[row * 16 : row * 16 + side, col * 16 : col * 16 + side] = True
        changed = (broken != picture).any(axis=-1)
        assert changed[area].mean() > 0.05
        assert not changed[~area].any()
    task = ReaderTask(renderer, batch=1, spoiled=1.0)
    counts = [(task.example(np.random.default_rng(s))[1] > 0).sum() for s in range(40)]
    assert min(counts) == 0, "the only object of a single scene is spoiled, so nothing is to be read"
    assert max(counts) <= 2


def test_a_training_file_makes_the_task(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "configs"
    pytest.importorskip("yaml")
    task = reader_task(TrainingFile.load(folder / "emoji.yaml"), folder)
    assert set(task.config.names) <= set(Reader.load(BUNDLED).config.names), "the bundled reader lacks objects"
    file = tmp_path / "photos.yaml"
    file.write_text("family: photos\ndata: {kind: folder, path: .}\nreader: {}\n")
    with pytest.raises(ValueError, match=r"needs data\.kind 'scenes'"):
        reader_task(TrainingFile.load(file), folder)


def test_disturbance_depends_on_the_generator_alone() -> None:
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    a, b = (disturb(images, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert 0.01 < (a - images).abs().mean() < 0.3


def test_training_teaches_the_reader(renderer: Renderer, scene_config: SceneConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = ReaderTask(renderer, batch=16, channels=(16, 24, 32))
    unseen = list(islice(scenes(scene_config, 11, True), 40))
    images = np.stack([renderer.render(s, 256) for s in unseen])

    def share_right() -> float:
        read = Reader(task.module).read(images)
        return float(
            np.mean([sorted(r.name for r in found) == sorted(s.objects) for found, s in zip(read, unseen, strict=True)])
        )

    before = share_right()
    loop = LoopConfig(steps=120, lr=6e-3, warmup=10, decay=60, ema=0.95, precision="fp32", log_every=120, threads=1)
    task.module.load_state_dict(train(task, loop, tmp_path, seed=1, name="reader"))
    assert before < 0.1
    assert share_right() > 0.8
