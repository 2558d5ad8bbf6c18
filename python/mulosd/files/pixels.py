"""From what a decoder of images gives to the colours that a viewer shows: 8-bit RGB, upright."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 0x0112
PHOTOMETRIC, BITS = 262, 258
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def on_white(image: Image.Image) -> Image.Image:
    """A loaded image in RGB."""
    profile = image.info.get("icc_profile")
    image = eight_bits(image)
    alpha = None
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    colour = to_srgb(image if image.mode in ("CMYK", "LAB") else image.convert("RGB"), profile)
    if alpha is None:
        return colour
    return Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as mode L; other images as they are."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        top = float(2 ** tags.get(BITS, (16,))[0] - 1)
    elif image.format == "PNG":
        top = 65535.0  # older Pillow reads 16-bit PNG as mode I
    else:
        tops = [1.0] * (image.mode == "F") + [255.0, 65535.0]
        top = next((top for top in tops if low >= 0 and high <= top), 0.0)
        if not top:
            raise ValueError(f"its values go from {low:g} to {high:g}, which is no known range; store 8 or 16 bits")
    grey = np.clip(np.rint(values * (255 / top)), 0, 255)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero; Pillow inverts 8 bits only
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey[values == clear] = 255
    return Image.fromarray(grey.astype(np.uint8))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB of an image in RGB, CMYK or LAB through its ICC profile, where that is sound and fits."""
    try:
        srgb = ImageCms.createProfile("sRGB")
        if image.mode == "LAB":
            return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB") or image
        if profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            same = "sRGB" in ImageCms.getProfileDescription(source)
            if space == "GRAY" and image.mode == "RGB":
                image = image.convert("L")
            if not same and {"GRAY": "L"}.get(space, space) == image.mode:
                return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        pass  # a damaged profile, or a Pillow without LittleCMS: viewers show the image without it
    return image.convert("RGB")


def upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn an image as the metadata of its source asks for."""
    if source.format == "TIFF":
        return image  # Pillow turned it, and older versions leave the mark
    try:
        turn = TURNS.get(source.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound image
        return image
    return image if turn is None else image.transpose(turn)
