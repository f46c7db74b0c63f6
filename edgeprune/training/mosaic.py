"""Several images as one picture."""

from __future__ import annotations

import io

import numpy as np
from torch import Tensor

SIDE_PX, ACROSS, QUALITY = 96, 8, 80


def mosaic(images: Tensor) -> bytes:
    """Images (n, 3, size, size) uint8 in rows of eight, as one JPEG file."""
    from PIL import Image

    rows = -(-len(images) // ACROSS)
    picture = Image.new("RGB", (min(len(images), ACROSS) * SIDE_PX, rows * SIDE_PX), "white")
    for place, image in enumerate(images.permute(0, 2, 3, 1).numpy()):  # (n, 3, h, w) -> (n, h, w, 3)
        small = Image.fromarray(np.ascontiguousarray(image)).resize((SIDE_PX, SIDE_PX))
        picture.paste(small, (place % ACROSS * SIDE_PX, place // ACROSS * SIDE_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
