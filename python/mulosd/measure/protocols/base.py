"""What every protocol has: items to draw, how images of an item are written, and how they are scored."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL.Image import Image

from ...engine.atomic import atomic


@dataclass(frozen=True)
class Item:
    """A prompt of a protocol and what it is filed under."""

    key: str
    prompt: str
    metadata: Any = None


@dataclass(frozen=True)
class Score:
    """What a scorer said: values by name, None where it was not called, and a note on why or how to go on."""

    values: dict[str, float] | None = None
    note: str | None = None


class Protocol(ABC):
    """A published protocol.

    Args:
        items: what is drawn, in order.
        official: how many items the official prompts have.

    Attributes:
        name: as the command line takes it.
        images: of each prompt.
    """

    name: ClassVar[str]
    images: ClassVar[int] = 1

    def __init__(self, items: Sequence[Item], official: int) -> None:
        self.items, self.official = list(items), official

    @classmethod
    @abstractmethod
    def open(cls, prompts: Path, reference: str, limit: int | None) -> Protocol:
        """Read and check the official prompts; ValueError says where to get them."""

    @abstractmethod
    def files(self, item: Item) -> list[Path]:
        """Files of an item below the folder of images."""

    @abstractmethod
    def write(self, folder: Path, item: Item, images: Sequence[Image]) -> None:
        """Write the files of an item, each whole or not at all."""

    @abstractmethod
    def score(self, folder: Path, device: str) -> Score:
        """Call the scorer where it is installed; otherwise the note says how to get or call it."""

    def complete(self, folder: Path, item: Item) -> bool:
        """Whether all files of an item are there."""
        return all((folder / file).is_file() for file in self.files(item))


def save(path: Path, image: Image, **options: Any) -> None:
    """Write an image in the format of its suffix."""
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    with atomic(path) as file:
        image.convert("RGB").save(file, format=kind, **options)


def installed(name: str) -> Any | None:
    """A scorer's module; None where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def refuse_reference(name: str, reference: str) -> None:
    """ValueError when a reference was given to a protocol that has none."""
    if reference != "builtin":
        raise ValueError(f"--reference {reference} has no meaning for --protocol {name}; leave it out")


def first(items: Sequence[Item], limit: int | None) -> list[Item]:
    return list(items if limit is None else items[:limit])
