"""Images as the bytes that clients get."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING

from ..cli.image_files import save_image

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


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
