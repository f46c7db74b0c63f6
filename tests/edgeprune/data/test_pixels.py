"""What white is in every kind of image file: its pixels as 8-bit RGB, or one message."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError

SIZE_PX = 32
RAMP = np.linspace(0, 1, SIZE_PX)[None].repeat(SIZE_PX, 0)
WANTED = (RAMP * 255).round()


def read(image: Image.Image | np.ndarray, format: str) -> np.ndarray:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format)
    return pixels_of(file.getvalue())


def pixels_of(content: bytes) -> np.ndarray:
    return Preprocessing(SIZE_PX).read(io.BytesIO(content)).astype(int)


def colour_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits for each of three colours, which Pillow reads and cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values[..., None].repeat(3, 2))
    header = struct.pack(">IIBBBBB", SIZE_PX, SIZE_PX, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_by_their_whole_range(format: str) -> None:
    found = read((RAMP * 65_535).round().astype(np.uint16), format)
    assert np.abs(found - WANTED[..., None]).max() == 0


def test_16_bits_a_colour_lose_only_what_8_bits_cannot_hold() -> None:
    found = pixels_of(colour_png((RAMP * 65_535).round().astype(np.uint16)))
    assert np.abs(found - WANTED[..., None]).max() <= 1


def test_floats_from_0_to_1_are_scaled() -> None:
    found = read(RAMP.astype(np.float32), "TIFF")
    assert np.abs(found - WANTED[..., None]).max() == 0


def test_what_is_transparent_is_white_and_what_is_half_so_is_blended() -> None:
    drawing = np.zeros((SIZE_PX, SIZE_PX, 4), np.uint8)
    drawing[:16, :, 3], drawing[16:24, :, 3] = 255, 102
    found = read(drawing, "PNG")
    assert [found[row].min() for row in (0, 20, 31)] == [0, 153, 255]
    palette = Image.fromarray(np.eye(SIZE_PX, dtype=np.uint8), "P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.info["transparency"] = 0
    found = read(palette, "PNG")
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[0, 1].tolist() == [255, 255, 255]


def test_16_bits_turned_by_a_camera_keep_their_range() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    file = io.BytesIO()
    Image.fromarray((RAMP * 65_535).round().astype(np.uint16)).save(file, "PNG", exif=exif)
    assert np.abs(pixels_of(file.getvalue()) - WANTED.T[..., None]).max() == 0


@pytest.mark.parametrize(
    ("values", "format", "message"),
    [
        ((RAMP * 4095).astype(np.uint16), "PNG", "16 bits with values up to 4,095 of 65,535"),
        ((RAMP * 70_000).astype(np.int32), "TIFF", "32-bit integers up to 70,000: they do not say which"),
        ((RAMP * 255).astype(np.float32), "TIFF", "floating-point values from 0 to 255: expected 0 to 1"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "TIFF", "floating-point values from nan"),
    ],
)
def test_values_that_do_not_say_what_is_white_are_refused(
    values: np.ndarray, format: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(values, format)


def test_12_bits_a_colour_in_16_are_refused_too() -> None:
    with pytest.raises(UserError, match="as cameras store 12 bits or fewer"):
        pixels_of(colour_png((RAMP * 4000).astype(np.uint16)))
