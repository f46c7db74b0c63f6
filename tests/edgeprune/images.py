"""Image folders made by the tests: each class a colour, with noise."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40)}


def write_folder(
    root: Path, *, classes: int = 3, train: int = 24, held_out: int = 8, size_px: int = 40
) -> Path:
    """Write train/ and val/ with one folder of JPEGs a class, and return `root`."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", held_out)):
        for name, colour in list(COLOURS.items())[:classes]:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = random.integers(-30, 30, (size_px, size_px + 7, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:03}.jpg")
    return root
