"""Previews of an image that is being drawn: the parts that its updates bring, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .engine.request import Update

if TYPE_CHECKING:
    from PIL.Image import Image


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

    @property
    def image(self) -> Image:
        """A copy of the whole image as it is, grey where nothing is known."""
        from PIL import Image

        if self._image is None:
            return Image.new("RGB", (self.size, self.size), (128, 128, 128))
        return self._image.copy()

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
        whole = self.image
        if update.kind == "band":
            top = update.row * self.patch
            whole.paste(part, (0, top))
            self._verified = max(self._verified, top + part.height)
        elif part.height > self._verified:
            box = (0, self._verified, part.width, part.height)
            whole.paste(part.crop(box), (0, self._verified))
        self._image = whole
        return whole
