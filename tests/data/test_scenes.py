"""Scenes: layout, captions, rendering aligned at every size, and the split."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mulosd.data.scenes import Renderer, Scene, SceneConfig, is_held_out, sample_scene, scenes
from mulosd.data.sprites import Sprites

CONFIG = SceneConfig(
    {"cat": "cats", "owl": "owls", "car": "cars"}, {"blue": (0, 0, 255), "white": (255, 255, 255)}, held_out=0.3
)


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    rng = np.random.default_rng(0)
    return Sprites(("cat", "owl", "car"), rng.integers(0, 256, (3, 96, 96, 4), dtype=np.uint8))


@pytest.mark.parametrize("jitter", [None, 0, 1])
def test_layout_matches_the_caption(jitter: int | None) -> None:
    rng = np.random.default_rng(1)
    config = replace(CONFIG, jitter=jitter)
    seen = set()
    for _ in range(2000):
        scene = sample_scene(config, rng)
        seen.add(scene.kind)
        assert all(0 <= v <= CONFIG.cells - CONFIG.sprite_cells for cell in scene.cells for v in cell)
        for i, a in enumerate(scene.cells):
            for b in scene.cells[i + 1 :]:
                assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= CONFIG.sprite_cells, "objects overlap"
        if scene.kind == "pair":
            (ra, ca), (rb, cb) = scene.cells
            n = CONFIG.sprite_cells
            holds = {
                "left of": ra == rb and ca + n <= cb,
                "right of": ra == rb and cb + n <= ca,
                "above": ra + n <= rb,
                "below": rb + n <= ra,
            }
            assert holds[scene.relation] and f" {scene.relation} " in scene.caption
        else:
            assert list(scene.cells) == sorted(scene.cells), "lists stand in reading order"
    assert len(seen) == 6


def test_jitter_bounds_the_places_of_a_scene() -> None:
    places: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for scene in islice(scenes(replace(CONFIG, jitter=1), 5, held_out=False), 3000):
        for i, cell in enumerate(scene.cells):
            places.setdefault((scene.kind + scene.relation, str(i)), set()).add(cell)
    assert {len(v) for v in places.values()} == {4}, "two rows times two columns for every object of a kind of scene"
    with pytest.raises(ValueError, match=r"jitter must be in \[0, 1\]"):
        replace(CONFIG, jitter=2)


def test_articles_counts_and_backgrounds_are_worded() -> None:
    captions = [s.caption for s in islice(scenes(CONFIG, 3, held_out=False), 500)]
    assert any(c.startswith("an owl on a ") for c in captions)
    assert any(c.startswith("two cats on a ") for c in captions)
    assert any(c.startswith("three owls on a ") for c in captions)
    assert all(c.endswith((" on a blue background", " on a white background")) for c in captions)


def test_the_split_keeps_combinations_apart_and_never_holds_out_lone_objects() -> None:
    train = list(islice(scenes(CONFIG, 0, held_out=False), 3000))
    held = list(islice(scenes(CONFIG, 0, held_out=True), 1000))
    assert not {s.combination for s in train} & {s.combination for s in held}
    assert {s.kind for s in held} <= {"pair", "list2", "list3"}
    assert {"single", "count2", "count3"} <= {s.kind for s in train}


def test_the_hash_split_takes_its_share() -> None:
    """10,000 names at a share of 0.3: five standard deviations are 0.023."""
    share = np.mean([is_held_out(f"name {i}", 0.3) for i in range(10000)])
    assert abs(share - 0.3) < 0.023


def test_small_renders_are_the_area_average_of_large_ones(sprites: Sprites) -> None:
    renderer = Renderer(CONFIG, sprites)
    scene = Scene(("cat", "car"), ((0, 1), (4, 5)), "blue", "pair", "above", "")
    large = renderer.render(scene, 256).astype(float)
    for size in (64, 128):
        f = 256 // size
        averaged = large.reshape(size, f, size, f, 3).mean(axis=(1, 3))
        assert np.abs(averaged - renderer.render(scene, size)).max() <= 1.0
    assert (renderer.render(scene, 256)[-1, 0] == (0, 0, 255)).all()


def test_a_sheet_survives_saving(tmp_path: Path, sprites: Sprites) -> None:
    sprites.save(tmp_path / "sheet.png")
    again = Sprites.load(tmp_path / "sheet.png")
    assert again.names == sprites.names and (again.rgba == sprites.rgba).all()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match="not a sprite sheet"):
        Sprites.load(tmp_path / "other.png")
    with pytest.raises(ValueError, match="lacks"):
        Renderer(SceneConfig({"dragon": "dragons"}, {"blue": (0, 0, 1)}), sprites)
    with pytest.raises(ValueError, match="side by side"):
        SceneConfig({"cat": "cats"}, {"blue": (0, 0, 1)}, sprite_cells=5)
