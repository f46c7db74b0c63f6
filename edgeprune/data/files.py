"""Image files: decoding them, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeprune.data.preprocessing import Preprocessing

HEIF_SUFFIXES = (".heic", ".heif")
PROBLEMS_SHOWN = 10


def visible(folder: Path) -> Iterator[Path]:
    """What is in a folder but for hidden files: those are the file manager's (.DS_Store), not the user's."""
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def decode(
    files: Sequence[Path], prepare: Preprocessing, problems: list[str], advance: Callable[[int], None]
) -> np.ndarray:
    """Decode each file once, into (n, 3, size, size) uint8; what cannot be decoded is added to `problems`."""
    size_px = prepare.image_size_px
    images = np.zeros((len(files), 3, size_px, size_px), dtype=np.uint8)

    def read(index: int) -> str | None:
        try:
            images[index] = prepare.read(files[index]).transpose(2, 0, 1)
        except Exception as error:  # Pillow raises many types on a bad file.
            return unreadable(files[index], error)
        return None

    in_threads(read, len(files), problems, advance)
    return images


def in_threads(
    work: Callable[[int], str | None], count: int, problems: list[str], advance: Callable[[int], None]
) -> None:
    """Do `work` for each place below `count`; what it finds wrong is added to `problems`."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        for done, problem in enumerate(pool.map(work, range(count)), start=1):
            if problem:
                problems.append(problem)
            if done % 64 == 0 or done == count:
                advance(done)


def unreadable(path: Path | str, error: Exception) -> str:
    """The problem of an image that Pillow cannot read."""
    if Path(path).suffix.lower() in HEIF_SUFFIXES:
        return f"{path}: HEIF images are not read: convert them to JPEG (heif-convert, sips, ImageMagick)"
    return f"{path}: not an image that can be read ({_reason(error)}); replace or remove it"


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "unknown format" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)


def shortened(problems: list[str]) -> list[str]:
    """The first problems, and how many more there are."""
    more = len(problems) - PROBLEMS_SHOWN
    return [*problems[:PROBLEMS_SHOWN], f"and {more} more"] if more > 0 else problems
