"""From an image to what a model takes: the one way for training, measuring, calibration and apps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from converters.facts import Normalization

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_IMAGE_SIZE_PX = 64
KEY = "preprocessing"
"""Name of the metadata entry that tells an app how to prepare images for a file."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input: turned upright, resized, its middle cropped, normalised.

    Attributes:
        image_size_px: side of the square that the model takes.
        resize_px: shorter side of the whole image before that square is cropped from its middle, at least
            image_size_px; None: first the largest square is cropped, then resized.
        interpolation: one of `INTERPOLATIONS`, antialiased, as Pillow does it.
        mean: of RGB in [0, 1].
        std: of RGB in [0, 1], each above 0.
        whole_image: nothing is cropped: the image is squeezed into the square, and `resize_px` is None.
    """

    image_size_px: int = DEFAULT_IMAGE_SIZE_PX
    resize_px: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    whole_image: bool = False

    def problems(self) -> list[str]:
        """Validation errors, one message each."""
        checks = [
            (
                self.resize_px is None or self.resize_px >= self.image_size_px,
                f"resize_px {self.resize_px}: at least image_size_px, {self.image_size_px}, which is cropped "
                "from the resized image",
            ),
            (
                self.interpolation in INTERPOLATIONS,
                f"interpolation {self.interpolation!r}: choose from {', '.join(INTERPOLATIONS)}",
            ),
            (all(value > 0 for value in self.std), f"std {self.std}: each above 0"),
            (
                self.resize_px is None or not self.whole_image,
                f"resize_px {self.resize_px} and whole_image: choose one of them",
            ),
        ]
        return [message for fine, message in checks if not fine]

    @property
    def normalization(self) -> Normalization:
        """What a converter folds into a file."""
        return Normalization(self.mean, self.std)

    def read(self, file: Path | BinaryIO) -> np.ndarray:
        """Decode an image file: (size, size, 3) uint8, RGB."""
        from PIL import Image

        with Image.open(file) as opened:
            if self.resize_px is None:
                # A large JPEG is decoded no larger than needed. Pretrained weights get what they had.
                opened.draft("RGB", (2 * self.image_size_px, 2 * self.image_size_px))
            return self.prepared(opened)

    def prepared(self, image: Image) -> np.ndarray:
        """An image of Pillow's, turned upright and fitted: (size, size, 3) uint8, RGB.

        Raises:
            UserError: its values do not tell what is white; see `edgeprune.data.pixels.to_rgb`.
        """
        import numpy as np
        from PIL import ImageOps

        from edgeprune.data.pixels import has_16_bits, to_rgb

        sixteen_bits = has_16_bits(image)
        return np.asarray(self.fitted(to_rgb(ImageOps.exif_transpose(image), sixteen_bits)))

    def fitted(self, image: Image, interpolation: str | None = None) -> Image:
        """Resize and crop an image, or with "nearest" the mask of one, to the model's square."""
        from PIL import ImageOps
        from PIL.Image import Resampling

        method = Resampling[(interpolation or self.interpolation).upper()]
        if self.whole_image:
            return image.resize((self.image_size_px, self.image_size_px), method)
        if self.resize_px is None:
            return ImageOps.fit(image, (self.image_size_px, self.image_size_px), method)
        width, height = resized_size(image.size, self.resize_px)
        left, top = (round((side - self.image_size_px) / 2) for side in (width, height))
        box = (left, top, left + self.image_size_px, top + self.image_size_px)
        return image.resize((width, height), method).crop(box)

    def window(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The part of an image of this width and height that the model sees: left, top, width, height."""
        width, height = size
        if self.whole_image:
            return 0.0, 0.0, float(width), float(height)
        side = float(min(size))
        if self.resize_px is None:
            return (width - side) / 2, (height - side) / 2, side, side
        resized = resized_size(size, self.resize_px)
        scales = [whole / now for whole, now in zip(size, resized, strict=True)]
        left, top = (
            round((now - self.image_size_px) / 2) * scale for now, scale in zip(resized, scales, strict=True)
        )
        seen_width, seen_height = (self.image_size_px * scale for scale in scales)
        return left, top, seen_width, seen_height

    def in_words(self) -> str:
        """For people, e.g. "shorter side to 256 px (bicubic), middle 224 x 224 px"."""
        size = f"{self.image_size_px} x {self.image_size_px} px"
        if self.whole_image:
            return f"the whole image, squeezed to {size} ({self.interpolation})"
        if self.resize_px is None:
            return f"largest square in the middle, resized to {size} ({self.interpolation})"
        return f"shorter side to {self.resize_px} px ({self.interpolation}), middle {size}"

    def to_metadata(self) -> dict[str, str]:
        """Entries for a file's metadata: what an app does to an image before the file's own normalisation."""
        whole: dict[str, Any] = {"whole_image": True} if self.whole_image else {}
        told: dict[str, Any] = {
            **whole,
            "resize_px": self.resize_px,
            "crop_px": self.image_size_px,
            "interpolation": self.interpolation,
            "antialias": True,
            "in_words": self.in_words(),
        }
        return {KEY: json.dumps(told, separators=(",", ":"))}


def resized_size(size: tuple[int, int], shorter_px: int) -> tuple[int, int]:
    """Width and height with the shorter side made `shorter_px`, rounded down as torchvision and timm do.

    >>> resized_size((500, 375), 256)
    (341, 256)
    """
    width, height = size
    if width <= height:
        return shorter_px, int(shorter_px * height / width)
    return int(shorter_px * width / height), shorter_px
