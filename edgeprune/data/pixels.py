"""Any image that Pillow opens as 8-bit RGB, by its true range, or the reason why that cannot be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

GROUND = (255, 255, 255)
"""What transparent pixels are put on: white, as a drawing is shown on a page."""
LARGEST_8_BIT, LARGEST_16_BIT = 255, 65_535
# A 16-bit image that uses none of its upper four bits has 12 bits in a container of 16, or fewer.
TWELVE_BITS = 1 << 12
WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


def has_16_bits(image: Image) -> bool:
    """Whether a file that was opened, and not changed since, has 16 bits for each colour."""
    tiles: list[Any] = getattr(image, "tile", None) or []
    return image.mode.startswith("I;16") or any("16" in str(tile[3]) for tile in tiles)


def to_rgb(image: Image, sixteen_bits: bool) -> Image:
    """8 bits for each of R, G and B.

    16-bit images are scaled by 65,535, floating-point ones from [0, 1]; transparent pixels are put on white.

    Args:
        image: as Pillow opens it, perhaps turned.
        sixteen_bits: what `has_16_bits` says of it as opened.

    Raises:
        UserError: its values do not tell what is white: 12 bits stored in 16, 32-bit integers, floats outside
            [0, 1] or not finite.
    """
    if image.mode == "F":
        image = _of_floats(np.asarray(image))
    elif image.mode.startswith("I"):
        image = _of_integers(np.asarray(image), sixteen_bits)
    elif sixteen_bits:  # Several colours: Pillow has read the high byte of each.
        _refuse_twelve_bits(int(np.asarray(image.convert("RGB")).max()) << 8)
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        return _on_ground(image)
    return image.convert("RGB")


def _of_floats(values: np.ndarray) -> Image:
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # NaN included
        raise UserError(f"floating-point values from {low:g} to {high:g}: expected 0 to 1; scale it")
    return Image.fromarray((values * LARGEST_8_BIT).round().astype(np.uint8))


def _of_integers(values: np.ndarray, sixteen_bits: bool) -> Image:
    from PIL import Image

    high = int(values.max())
    if not sixteen_bits:
        raise UserError(
            f"32-bit integers up to {high:,}: they do not say which is white; write it with 8 or 16 bits"
        )
    _refuse_twelve_bits(high)
    scaled = values.astype(np.float32) * (LARGEST_8_BIT / LARGEST_16_BIT)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _refuse_twelve_bits(high: int) -> None:
    if 0 < high < TWELVE_BITS:
        raise UserError(
            f"16 bits with values up to {high:,} of {LARGEST_16_BIT:,}, as cameras store 12 bits or fewer: "
            "nearly black; write it with its full range"
        )


def _on_ground(image: Image) -> Image:
    from PIL import Image

    whole = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, (*GROUND, LARGEST_8_BIT)), whole).convert(
        "RGB"
    )
