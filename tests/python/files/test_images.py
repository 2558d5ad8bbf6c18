"""Images read as a viewer shows them: modes, depths, orientations, profiles, damage; folders checked whole."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from mulosd.files import images
from mulosd.files.images import check_images, list_images, read_image

# Left half red, right half blue, the upper left corner green: every turn and flip tells.
W, H = 32, 16


def scene() -> Image.Image:
    image = Image.new("RGB", (W, H), (255, 0, 0))
    image.paste((0, 0, 255), (W // 2, 0, W, H))
    image.paste((0, 255, 0), (0, 0, 8, 8))
    return image


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def distance(a: Image.Image, b: Image.Image) -> float:
    assert a.mode == b.mode == "RGB" and a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


def grey(path: Path) -> list[int]:
    """The first row of a grey image as it is read."""
    pixels = np.asarray(read_image(path))
    assert (pixels[..., :1] == pixels).all()
    return pixels[0, :, 0].tolist()


@pytest.mark.parametrize("suffix", ["png", "JPG", "jpeg", "webp", "bmp", "gif", "tif", "TIFF", "jp2", "avif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = saved(tmp_path / f"a.{suffix}", scene())
    assert list_images(tmp_path) == [path]
    assert distance(read_image(path), scene()) < 12


def test_content_counts_not_the_suffix(tmp_path: Path) -> None:
    assert distance(read_image(saved(tmp_path / "a.jpg", scene(), format="PNG")), scene()) == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    """The stored pixels are turned the other way round, so that every viewer shows the same scene."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of each, as Image.Transpose
    stored = scene() if orientation == 1 else scene().transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", stored, exif=exif.tobytes(), quality=95)
    assert distance(read_image(path), scene()) < 12


def test_damaged_exif_does_not_stop_reading(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", scene(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xee" * 30)
    assert distance(read_image(path), scene()) == 0


GREY16 = np.array([[0, 257, 32896, 65535]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits(tmp_path: Path, suffix: str) -> None:
    assert grey(saved(tmp_path / f"a.{suffix}", Image.fromarray(GREY16))) == [0, 1, 128, 255]


def test_dark_grey_of_16_bits_stays_dark(tmp_path: Path) -> None:
    """Scaled by what the file can hold, not by what it holds."""
    assert grey(saved(tmp_path / "a.png", Image.fromarray(GREY16 // 257))) == [0, 0, 0, 1]


def test_grey_of_16_bits_with_a_clear_value(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(GREY16))
    clear = b"tRNS" + struct.pack(">H", 257)
    chunk = struct.pack(">I", 2) + clear + struct.pack(">I", zlib.crc32(clear))
    whole = path.read_bytes()  # the header ends at byte 33
    path.write_bytes(whole[:33] + chunk + whole[33:])
    assert grey(path) == [0, 255, 128, 255]


def tiff(order: str, bits: int, photometric: int, kind: int, data: bytes, width: int) -> bytes:
    """A grey TIFF of one row."""
    tags = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 3, 1), (279, 4, len(data)), (339, 3, kind)]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    table = struct.pack(order + "H", len(tags))
    for tag, size, value in tags:
        table += struct.pack(order + "HHI", tag, size, 1) + struct.pack(
            order + ("HH" if size == 3 else "I"), value, *([0] * (size == 3))
        )
    return head + data + table + bytes(4)


@pytest.mark.parametrize(
    ("order", "bits", "photometric", "kind", "data", "seen"),
    [
        ("<", 16, 1, 1, GREY16.astype("<u2").tobytes(), [0, 1, 128, 255]),
        (">", 16, 1, 1, GREY16.astype(">u2").tobytes(), [0, 1, 128, 255]),
        ("<", 16, 0, 1, GREY16.astype("<u2").tobytes(), [255, 254, 127, 0]),
        ("<", 12, 1, 1, bytes.fromhex("00001080 8fff"), [0, 1, 128, 255]),
        ("<", 32, 1, 3, np.array([0, 0.25, 0.5, 1], "<f4").tobytes(), [0, 64, 128, 255]),
        ("<", 32, 1, 3, np.array([0, 1, 128, 255], "<f4").tobytes(), [0, 1, 128, 255]),
        ("<", 32, 1, 1, np.array([0, 1, 128, 255], "<u4").tobytes(), [0, 1, 128, 255]),
        ("<", 32, 1, 1, np.array([0, 257, 32896, 65535], "<u4").tobytes(), [0, 1, 128, 255]),
    ],
)
def test_grey_of_tiff(
    tmp_path: Path, order: str, bits: int, photometric: int, kind: int, data: bytes, seen: list[int]
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(order, bits, photometric, kind, data, 4))
    assert grey(path) == seen


@pytest.mark.parametrize("values", [[0, 1e9], [-1, 1], [0, np.nan], [0, np.inf]])
def test_floats_of_no_known_range_are_refused(tmp_path: Path, values: list[float]) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff("<", 32, 1, 3, np.array(values, "<f4").tobytes(), 2))
    with pytest.raises(ValueError, match=r"a\.tif .* no known range"):
        read_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 102))
    made = image if mode == "RGBA" else image.convert("LA").convert(mode)
    made.putalpha(image.getchannel("A"))
    path = saved(tmp_path / ("a.tif" if mode == "PA" else "a.png"), made)
    assert Image.open(path).mode == mode
    assert grey(path) == [0, 255, 153]


def test_clear_entry_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for name in ("a.png", "a.gif"):
        pixels = np.asarray(read_image(saved(tmp_path / name, image, transparency=1)))
        assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_clear_colours_of_rgb_and_grey_are_white(tmp_path: Path) -> None:
    rgb = read_image(saved(tmp_path / "a.png", scene(), transparency=(255, 0, 0)))
    assert rgb.getpixel((10, 10)) == (255, 255, 255) and rgb.getpixel((0, 0)) == (0, 255, 0)
    assert grey(saved(tmp_path / "b.png", Image.new("L", (2, 1), 7), transparency=7)) == [255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LAB"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        made = ImageCms.profileToProfile(scene(), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    else:
        made = scene().convert(mode)
    path = saved(tmp_path / "a.tif", made)
    assert Image.open(path).mode == mode
    known = scene().convert(mode).convert("RGB") if mode in ("1", "L") else scene()
    # Eight bits of LAB are coarse where colours are full.
    assert distance(read_image(path), known) < (10 if mode == "LAB" else 3)


def test_cmyk_of_jpeg(tmp_path: Path) -> None:
    """Pillow, like Photoshop, stores it inverted with Adobe's mark."""
    path = saved(tmp_path / "a.jpg", scene().convert("CMYK"), quality=95)
    assert b"Adobe" in path.read_bytes()[:64] and Image.open(path).mode == "CMYK"
    assert distance(read_image(path), scene()) < 12


def swapped_profile() -> bytes:
    """The sRGB profile with its red and blue primaries exchanged, and of another name."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"tmp1").replace(b"bXYZ", b"rXYZ").replace(b"tmp1", b"bXYZ")
    return data.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB built", b"swap built")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_profile_is_applied(tmp_path: Path, mode: str) -> None:
    made = scene().convert(mode)
    seen = read_image(saved(tmp_path / "a.png", made, icc_profile=swapped_profile()))
    red, green, blue = made.convert("RGB").split()
    assert distance(seen, Image.merge("RGB", (blue, green, red))) < 3


def test_profile_of_srgb_changes_nothing(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8))
    assert distance(read_image(saved(tmp_path / "a.png", noise, icc_profile=srgb)), noise) == 0


@pytest.mark.parametrize("profile", [b"no profile", b"", swapped_profile()[:200]])
def test_damaged_profile_is_left_out(tmp_path: Path, profile: bytes) -> None:
    assert distance(read_image(saved(tmp_path / "a.png", scene(), icc_profile=profile)), scene()) == 0


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_of_several_frames(tmp_path: Path, suffix: str) -> None:
    second = Image.new("RGB", (W, H), "yellow")
    path = saved(tmp_path / f"a.{suffix}", scene(), save_all=True, append_images=[second], lossless=True)
    assert Image.open(path).n_frames == 2
    assert distance(read_image(path), scene()) < 3


def test_no_format_that_calls_programs(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", scene(), format="EPS")
    with pytest.raises(ValueError, match="no image format that is known here"):
        read_image(path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    whole = io.BytesIO()
    scene().save(whole, "JPEG")
    for name, data in {"cut.jpg": whole.getvalue()[:-200], "page.jpg": b"<!DOCTYPE html>", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image: "):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"lost\.png .* no such file"):
        read_image(tmp_path / "lost.png")
    with pytest.raises(ValueError, match="is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path: Path, size: tuple[int, int]) -> None:
    """Both between Pillow's warning and its error, and beyond; only the header says so."""
    data = bytearray(saved(tmp_path / "a.bmp", Image.new("L", (8, 8))).read_bytes())
    data[18:26] = struct.pack("<ii", *size)
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.bmp .* limit of {images.LIMIT:,} pixels"):
        read_image(tmp_path / "a.bmp")
    with pytest.raises(ValueError, match=rf"1 of 1 .*a\.bmp \(.*limit of {images.LIMIT:,} pixels"):
        check_images(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]), st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: st.DataObject
) -> None:
    monkeypatch.setattr(images, "LIMIT", 2**20)  # damaged sizes would cost seconds and gigabytes
    buffer = io.BytesIO()
    scene().save(buffer, kind)
    raw = bytearray(buffer.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.png"
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    try:
        told = f"{path} cannot be read as an image: " if read_image(path).mode == "RGB" else ""
    except ValueError as error:
        told = str(error)
    assert told.startswith(f"{path} cannot be read as an image: ") and "\n" not in told


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        scene().save(path / name, "PNG")
    return path


def test_listing_leaves_out_what_is_no_image_of_the_user(tmp_path: Path) -> None:
    folder_of(tmp_path, "b.PNG", "a/c.jpg", "._b.png", ".cache/x.png", "__MACOSX/x.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "b.txt").write_text("a cat")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == ["a/c.jpg", "b.PNG", "gone.png"]
    with pytest.raises(ValueError, match="lost cannot be read as a folder: no such file"):
        list_images(tmp_path / "lost")


def test_check_names_every_kind_of_trouble(tmp_path: Path) -> None:
    folder_of(tmp_path, "good.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    Image.new("RGB", (2000, 20)).save(tmp_path / "long.png")
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "gone.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match="4 of 5 images in") as caught:
        check_images(tmp_path, side=16)
    for part in ("tiny.png (1 x 1 px, ", "long.png (2000 x 20 px, ", "page.png (it is of no", "gone.png (no such file"):
        assert part in str(caught.value)
    assert "good.png" not in str(caught.value)


def test_check_names_ten_and_counts_the_rest(tmp_path: Path) -> None:
    folder_of(tmp_path, *(f"{i:02}.png" for i in range(13)))
    with pytest.raises(ValueError, match=r"13 of 13 .*09\.png \(.*\), and 3 more; "):
        check_images(tmp_path, side=100)


def test_check_counts(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    (tmp_path / "b.heic").touch()
    assert check_images(tmp_path) == [tmp_path / "a.png"]
    with pytest.raises(ValueError, match=r"holds 1 images .*, 2 are needed; it also holds what is not read: 1 \.heic"):
        check_images(tmp_path, least=2)


def test_check_decodes_when_asked(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-30])
    calls = []
    assert len(check_images(tmp_path)) == 2
    with pytest.raises(ValueError, match=r"1 of 2 images in .*b\.png"):
        check_images(tmp_path, decode=True, progress=lambda *call: calls.append(call))
    assert calls == [("checking images", 1, 2), ("checking images", 2, 2)]
