"""Sprites: small RGBA pictures of named objects, rendered from an icon pack or loaded from a sheet."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..engine.atomic import atomic
from ..engine.paths import expanded
from ..files.images import opened, reason
from ..files.texts import parse_json, read_json


@dataclass(frozen=True)
class Sprites:
    """Named RGBA pictures of one size. `rgba` is uint8 [n, S, S, 4], straight alpha."""

    names: tuple[str, ...]
    rgba: NDArray[np.uint8]

    def __post_init__(self) -> None:
        n, h, w, c = self.rgba.shape
        if n != len(self.names) or h != w or c != 4:
            raise ValueError(f"{len(self.names)} names need rgba of shape [n, S, S, 4], got {self.rgba.shape}")

    @property
    def size(self) -> int:
        return int(self.rgba.shape[1])

    def premultiplied(self, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colour times alpha [n, size, size, 3] and alpha [n, size, size, 1] in 0..1, area-averaged to `size`."""
        if self.size % size:
            raise ValueError(f"sprites of {self.size} px reduce to a divisor of that, not to {size} px")
        f = self.size // size
        alpha = self.rgba[..., 3:].astype(np.float32) / 255
        both = np.concatenate([self.rgba[..., :3].astype(np.float32) / 255 * alpha, alpha], axis=-1)
        n = len(self.names)
        both = both.reshape(n, size, f, size, f, 4).mean(axis=(2, 4))
        return both[..., :3], both[..., 3:]

    def save(self, path: Path) -> None:
        """Write a PNG sheet, one row, names in its metadata."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("names", json.dumps(list(self.names)))
        n, s = len(self.names), self.size
        sheet = self.rgba.transpose(1, 0, 2, 3).reshape(s, n * s, 4)
        with atomic(path) as file:
            Image.fromarray(sheet, "RGBA").save(file, "PNG", pnginfo=info, optimize=True)

    @classmethod
    def load(cls, path: Path) -> Sprites:
        """Read a sheet written by `save`."""
        path = expanded(path)
        try:
            with opened(path) as image:
                names = image.info.get("names")
                sheet = np.asarray(image.convert("RGBA"))
        except Exception as error:  # decoders of damaged files raise whatever comes
            raise ValueError(f"{path} cannot be read as a sprite sheet: {reason(error)}") from error
        if names is None:
            raise ValueError(f"{path} is not a sprite sheet: it has no 'names' in its PNG metadata")
        listed, s = parse_json(str(names), f"{path}: names"), sheet.shape[0]
        if not isinstance(listed, list) or sheet.shape[1] != s * len(listed):
            raise ValueError(f"{path} is not a sprite sheet: {sheet.shape[1]} x {s} px are no row of its sprites")
        return cls(tuple(listed), np.ascontiguousarray(sheet.reshape(s, len(listed), s, 4).transpose(1, 0, 2, 3)))


def render_icons(pack: Path, icons: dict[str, str], size: int) -> Sprites:
    """Render icons of an Iconify pack (`icons.json`) at `size` px.

    Args:
        pack: the package folder or its icons.json.
        icons: object name -> icon key ("car" -> "automobile").
        size: side in px.

    Raises:
        ValueError: an icon is not in the pack.
        ImportError: resvg-py is missing (`pip install mulosd[train]`).
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise ImportError("rendering icons needs resvg-py: pip install 'mulosd[train]'") from error
    pack = expanded(pack)
    path = pack / "icons.json" if pack.is_dir() else pack
    data = read_json(path, kind=dict)
    if not isinstance(data.get("icons"), dict):
        raise ValueError(f"{path} is no icon pack of Iconify: it lacks the object 'icons'")
    missing = [key for key in icons.values() if key not in data["icons"]]
    if missing:
        raise ValueError(f"{path} has no icons {missing}; it has {len(data['icons'])}, see its keys")
    pictures = []
    for key in icons.values():
        icon = data["icons"][key]
        w, h = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}">{icon["body"]}</svg>'
        png = bytes(svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
        picture = Image.open(io.BytesIO(png)).convert("RGBA")
        canvas = Image.new("RGBA", (size, size))
        canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        pictures.append(np.asarray(canvas))
    return Sprites(tuple(icons), np.stack(pictures))
