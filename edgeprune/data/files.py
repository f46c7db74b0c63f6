"""Folders of image files: finding the splits, decoding, and what is wrong with a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError

TRAINING_FOLDERS = ("train", "training")
HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")
HEIF_SUFFIXES = (".heic", ".heif")
DECODED_LIMIT_FRACTION = 0.5  # of the machine's memory that decoded images may fill
PROBLEMS_SHOWN = 10


def find_splits(path: Path, each: str = "one folder of images a class") -> tuple[Path, Path]:
    """The folders of the training and of the held-out images.

    Raises:
        UserError: one of them is missing; `each` says what belongs into them.
    """
    expected = f"expected train/ and val/ (or test/), each with {each}"
    if not path.is_dir():
        raise UserError(
            f"data folder {path}: {'not a folder' if path.exists() else 'no such folder'}; {expected}"
        )
    train, held_out = (_folder_named(path, names) for names in (TRAINING_FOLDERS, HELD_OUT_FOLDERS))
    missing = [] if train else ["train/"]
    missing += [] if held_out else ["val/ or test/"]
    if train is None or held_out is None:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing, it is empty"
        raise UserError(f"data folder {path}: no {' and no '.join(missing)}; found {there}; {expected}")
    return train, held_out


def _folder_named(path: Path, names: Sequence[str]) -> Path | None:
    """The first of the folders with one of these names, in upper or lower case.

    Raises:
        UserError: two differ in their case alone.
    """
    folders = [entry for entry in visible(path) if entry.is_dir()]
    for name in names:
        found = sorted(entry.name for entry in folders if entry.name.lower() == name)
        if len(found) > 1:
            raise UserError(f"data folder {path}: {' and '.join(found)}: which of them? Rename one")
        if found:
            return path / found[0]
    return None


def visible(folder: Path) -> Iterator[Path]:
    """What is in a folder but for hidden files: those are the file manager's (.DS_Store), not the user's."""
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def refuse_too_many(needed_bytes: int, what: str) -> None:
    """Refuse images that would take more of this machine's memory than they may.

    Raises:
        UserError: that they do; `what` they are comes before "take".
    """
    available_bytes = memory_bytes()
    if needed_bytes > available_bytes * DECODED_LIMIT_FRACTION:
        raise UserError(
            f"{what} take {needed_bytes / 1e9:.1f} GB decoded, "
            f"this machine has {available_bytes / 1e9:.1f} GB of memory: "
            "use fewer or smaller images (--image-size-px)"
        )


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a container or a limit says so."""
    import psutil

    found = [psutil.virtual_memory().total]
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found.append(int(text))
    try:
        import resource
    except ImportError:  # Windows has no such limits.
        return min(found)
    found += [limit for limit in (resource.getrlimit(resource.RLIMIT_AS)[0],) if limit > 0]
    return min(found)


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
