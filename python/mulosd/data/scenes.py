"""Captioned scenes with known truth: 1 to 3 sprites on a coloured background, in a stated relation.

A scene is a specification (objects, cells, background), its caption follows from it, and it renders at any size
aligned to the same cells. Objects of a list stand in reading order. Combinations of objects, relation and background
are split by hash, so that held-out combinations are never seen in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sprites import Sprites

RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {2: "two", 3: "three"}
# Objects of a scene, by its kind.
OBJECTS = {"single": 1, "pair": 2, "list2": 2, "list3": 3, "count2": 2, "count3": 3}
KINDS = tuple(OBJECTS)


@dataclass(frozen=True)
class SceneConfig:
    """What scenes are made of.

    Args:
        objects: object name -> plural.
        backgrounds: colour name -> RGB 0..255.
        cells: positions a side; objects stand on this grid (8 at 256 px = steps of 32 px).
        sprite_cells: side of an object in cells.
        mix: share of each kind of scene, in the order of `KINDS`.
        held_out: share of combinations kept out of training.
        jitter: cells that an object may be off its place, in each direction; None lets objects stand anywhere that
            the caption allows. A raster model must decide at every token whether an object begins there, so that this
            is what makes scenes hard to learn: with jitter 1 it chooses among 4 places, without among 36.
        free_single: an object that is alone may stand anywhere, whatever the jitter.
        relations: share of each relation among pairs, in the order of `RELATIONS`; none draws all equally often.
    """

    objects: dict[str, str]
    backgrounds: dict[str, tuple[int, int, int]]
    cells: int = 8
    sprite_cells: int = 3
    mix: tuple[float, ...] = (0.3, 0.35, 0.1, 0.1, 0.1, 0.05)
    held_out: float = 0.15
    jitter: int | None = None
    free_single: bool = False
    relations: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mix) != len(KINDS):
            raise ValueError(f"mix needs {len(KINDS)} shares, for {KINDS}; got {len(self.mix)}")
        shares = self.relations
        if shares and (len(shares) != len(RELATIONS) or min(shares) < 0 or not 0 < sum(shares) < float("inf")):
            raise ValueError(f"relations needs {len(RELATIONS)} shares, for {RELATIONS}; got {list(shares)}")
        if 2 * self.sprite_cells > self.cells:
            raise ValueError(f"two objects of {self.sprite_cells} cells do not fit side by side in {self.cells} cells")
        room = (self.cells - 2 * self.sprite_cells) // 2
        if self.jitter is not None and not 0 <= self.jitter <= room:
            raise ValueError(f"jitter must be in [0, {room}] cells, so that two objects do not overlap; {self.jitter}")

    @property
    def most_objects(self) -> int:
        """The most objects of a scene, of the kinds that are drawn at all."""
        return max(OBJECTS[kind] for kind, share in zip(KINDS, self.mix, strict=True) if share > 0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SceneConfig:
        return cls(
            **{
                **values,
                "backgrounds": {k: tuple(v) for k, v in values["backgrounds"].items()},
                "mix": tuple(values.get("mix", cls.mix)),
            }
        )


@dataclass(frozen=True)
class Scene:
    """One scene: object names with the (row, col) cell of their top-left corner, a background, a caption."""

    objects: tuple[str, ...]
    cells: tuple[tuple[int, int], ...]
    background: str
    kind: str
    relation: str
    caption: str

    @property
    def combination(self) -> str:
        """What the hash split looks at: everything but the positions."""
        return "|".join((self.kind, *self.objects, self.relation, self.background))

    def is_held_out(self, share: float) -> bool:
        """Whether the scene belongs to the held-out split: some combinations of different objects do.

        Scenes of one kind of object are all trained on; that an object exists on every background is no combination.
        """
        return len(set(self.objects)) > 1 and is_held_out(self.combination, share)


def article(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def is_held_out(combination: str, share: float) -> bool:
    """Whether a combination belongs to the held-out split; the same on every machine."""
    digest = hashlib.sha256(combination.encode()).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


def sample_scene(config: SceneConfig, rng: np.random.Generator) -> Scene:
    """Draw one scene from either split."""
    kind = KINDS[rng.choice(len(KINDS), p=np.asarray(config.mix) / sum(config.mix))]
    names = list(config.objects)
    background = str(rng.choice(list(config.backgrounds)))
    relation = ""
    count = OBJECTS[kind]
    if kind.startswith("count"):
        name = str(rng.choice(names))
        chosen = [name] * count
        phrase = f"{COUNTS[count]} {config.objects[name]}"
    else:
        chosen = [str(n) for n in rng.choice(names, count, replace=False)]
        if kind == "pair":
            shares = np.asarray(config.relations) / sum(config.relations) if config.relations else None
            relation = str(rng.choice(RELATIONS, p=shares))
            phrase = f"{article(chosen[0])} {relation} {article(chosen[1])}"
        else:
            with_article = [article(n) for n in chosen]
            phrase = " and ".join([*filter(None, [", ".join(with_article[:-1])]), with_article[-1]])
    free = config.jitter is None or (config.free_single and kind == "single")
    place = free_places if free else fixed_places
    cells = place(config, kind, relation, count, rng)
    caption = f"{phrase} on {article(background)} background"
    return Scene(tuple(chosen), tuple(cells), background, kind, relation, caption)


def in_relation(relation: str, first: int, second: int, across: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells of a pair: `first` < `second` along the axis of the relation, `across` on the other one."""
    a, b = (first, across[0]), (second, across[1])
    if relation in ("right of", "below"):
        a, b = b, a
    return [a, b] if relation in ("above", "below") else [a[::-1], b[::-1]]


def free_places(
    config: SceneConfig, kind: str, relation: str, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Cells anywhere that the caption allows."""
    free = config.cells - config.sprite_cells
    if kind == "single":
        return [(int(rng.integers(free + 1)), int(rng.integers(free + 1)))]
    if kind == "pair":
        first = int(rng.integers(free - config.sprite_cells + 1))
        second = int(rng.integers(first + config.sprite_cells, free + 1))
        across = int(rng.integers(free + 1))
        # Side by side means in one row, so that the caption alone tells which object the raster meets first.
        shift = int(rng.integers(-1, 2)) if relation in ("above", "below") else 0
        return in_relation(relation, first, second, (across, int(np.clip(across + shift, 0, free))))
    quadrants = sorted(int(q) for q in rng.choice(4, count, replace=False))
    half = config.cells // 2
    slack = half - config.sprite_cells
    rows = [half * band + int(rng.integers(slack + 1)) for band in range(2)]
    return [(rows[q // 2], half * (q % 2) + int(rng.integers(slack + 1))) for q in quadrants]


def fixed_places(
    config: SceneConfig, kind: str, relation: str, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Cells at most `jitter` off fixed places: the middle, side by side, one above the other, or two above one."""
    jitter = config.jitter or 0
    end = config.cells - config.sprite_cells - jitter
    middle = end // 2

    def near(cell: int) -> int:
        return cell + int(rng.integers(jitter + 1))

    if kind == "single":
        return [(near(middle), near(middle))]
    if kind == "pair":
        across = near(middle)
        beside = near(middle) if relation in ("above", "below") else across
        return in_relation(relation, near(0), near(end), (across, beside))
    row = near(middle if count == 2 else 0)
    side_by_side = [(row, near(0)), (row, near(end))]
    return side_by_side if count == 2 else [*side_by_side, (near(end), near(middle))]


def scenes(config: SceneConfig, seed: int, held_out: bool) -> Iterator[Scene]:
    """Endless scenes of one split, the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        scene = sample_scene(config, rng)
        if scene.is_held_out(config.held_out) == held_out:
            yield scene


class Renderer:
    """Composites scenes at a given image size from sprites reduced once."""

    def __init__(self, config: SceneConfig, sprites: Sprites) -> None:
        missing = [n for n in config.objects if n not in sprites.names]
        if missing:
            raise ValueError(f"the sprite sheet lacks {missing}; it has {list(sprites.names)}")
        self.config = config
        self.sprites = sprites
        self._index = {n: i for i, n in enumerate(sprites.names)}
        self._reduced: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    def render(self, scene: Scene, size: int) -> NDArray[np.uint8]:
        """uint8 [size, size, 3] image of a scene; `size` is a multiple of the cell count."""
        if size % self.config.cells:
            raise ValueError(f"size must be a multiple of {self.config.cells} cells, got {size}")
        cell = size // self.config.cells
        side = cell * self.config.sprite_cells
        if size not in self._reduced:
            self._reduced[size] = self.sprites.premultiplied(side)
        colour, alpha = self._reduced[size]
        colour_of_background = np.asarray(self.config.backgrounds[scene.background], np.float32) / 255
        canvas = np.broadcast_to(colour_of_background, (size, size, 3)).copy()
        for name, (row, col) in zip(scene.objects, scene.cells, strict=True):
            i = self._index[name]
            view = canvas[row * cell : row * cell + side, col * cell : col * cell + side]
            view *= 1 - alpha[i]
            view += colour[i]
        return np.rint(canvas * 255).astype(np.uint8)
