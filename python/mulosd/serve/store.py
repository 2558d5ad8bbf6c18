"""Images that are answered as addresses: files under random names in one folder."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from ..engine.atomic import atomic

ID = re.compile(r"img_[0-9a-f]{32}\.(png|webp|jpeg)")


class ImageStore:
    """A folder of images. Nobody can guess a name, and nothing else of the folder can be asked for.

    Args:
        folder: it exists; old files are for its owner to delete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, data: bytes, kind: str) -> str:
        """Write an encoded image; returns its id."""
        name = f"img_{secrets.token_hex(16)}.{kind}"
        with atomic(self.folder / name) as file:
            file.write(data)
        return name

    def find(self, name: str) -> tuple[bytes, str] | None:
        """Bytes and media type of an image; None where there is none."""
        found = ID.fullmatch(name)
        if found is None:
            return None
        try:
            return (self.folder / name).read_bytes(), f"image/{found[1]}"
        except OSError:
            return None
