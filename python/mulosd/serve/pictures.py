"""Images of updates: whole previews out of parts, and the encoded bytes that clients get."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING

from ..cli.image_files import save_image
from ..engine.request import Update

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class Canvas:
    """What is known of one image so far, at its full size: the enlarged draft, with verified rows painted over it.

    Args:
        size: side in px.
        patch: px a token side.
    """

    def __init__(self, size: int, patch: int) -> None:
        self.size, self.patch = size, patch
        self._image: Image | None = None
        self._verified = 0  # rows in px, from the top, that are final

    def paint(self, update: Update) -> Image:
        """The whole image with a preview in it."""
        from PIL import Image

        if update.image is None:
            raise RuntimeError("a preview holds an image")
        scale = self.size // update.image.width
        part = update.image.resize(
            (self.size, update.image.height * scale),
            Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.NEAREST,
        )
        whole = Image.new("RGB", (self.size, self.size), (128, 128, 128)) if self._image is None else self._image.copy()
        if update.kind == "band":
            top = update.row * self.patch
            whole.paste(part, (0, top))
            self._verified = max(self._verified, top + part.height)
        elif part.height > self._verified:
            box = (0, self._verified, part.width, part.height)
            whole.paste(part.crop(box), (0, self._verified))
        self._image = whole
        return whole


def encode(image: Image, settings: Mapping[str, str], kind: str, quality: int | None) -> bytes:
    """An image in a format of the API ("png", "webp", "jpeg") that remembers its settings."""
    held = BytesIO()
    save_image(held, image, settings, f".{kind}", quality)
    return held.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def rows_of(mask: Tensor | None) -> list[str] | None:
    """A bool mask [H, W] as a text of 0 and 1 a row."""
    if mask is None:
        return None
    return ["".join("1" if cell else "0" for cell in row) for row in mask.tolist()]
