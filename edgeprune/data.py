"""Labelled images: the embedded digits, or a folder with one folder a class. `scenes` has those with maps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import UserError
from edgeprune.progress import Progress
from edgeprune.tasks import Task, task_of

HELD_OUT_FOLDERS = ("val", "test")
DECODED_LIMIT_FRACTION = 0.5  # of the machine's memory that decoded images may fill
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Split:
    """Images and what they show.

    Attributes:
        images: (n, 3, size, size) uint8, RGB in [0, 255].
        labels: (n,) int64, a class for each image; or (n, size, size) int16, one for each pixel, those that
            are not to count `tasks.IGNORED`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def task(self) -> Task:
        """What such labels ask of a model."""
        return task_of(self.labels)


@dataclass(frozen=True)
class Data:
    """What a recipe trains and measures on.

    Attributes:
        train: for training.
        held_out: never trained on; every accuracy is measured on it.
        classes: names, in label order.
        source: for people.
        photographs: whether mirroring left to right keeps the meaning.
        sha256: over all pixels and labels.
    """

    train: Split
    held_out: Split
    classes: tuple[str, ...]
    source: str
    photographs: bool
    sha256: str


def load(path: Path | None, image_size_px: int, progress: Progress) -> Data:
    """Load an image folder, or the embedded digits where `path` is None.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    return _digits(image_size_px) if path is None else _folder(path, image_size_px, progress)


def held_out(path: Path | None, image_size_px: int, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly over the classes.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    if path is None:
        whole = _digits(image_size_px).held_out
        places = spread(len(whole), count)
        return Split(whole.images[places], whole.labels[places])
    train_folder, held_out_folder = find_splits(path)
    found = _find_files(held_out_folder, _find_classes(train_folder, held_out_folder))
    found = [found[place] for place in spread(len(found), count)]
    problems: list[str] = []
    images = decode([file for file, _ in found], image_size_px, problems, lambda _: None)
    if problems:
        raise UserError(shortened(problems))
    return as_split(images, np.array([label for _, label in found], dtype=np.int64))


def spread(length: int, count: int) -> list[int]:
    """Up to `count` places from first to last, evenly."""
    return [int(place) for place in np.linspace(0, length - 1, min(count, length))]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits.

    Attributes:
        images: (n, 8, 8) uint8, ink in [0, 255].
        labels: (n,) int64.
    """

    images: np.ndarray
    labels: np.ndarray


def digits() -> tuple[Digits, Digits]:
    """The 1,797 embedded digits, a fixed stratified split: for training, and 450 held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images, labels = (bunch.images * 255 / 16).astype(np.uint8), bunch.target.astype(np.int64)
    train, held_out = train_test_split(np.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def _digits(image_size_px: int) -> Data:
    """The embedded digits, enlarged to a square."""
    train, held_out = (_enlarged(part, image_size_px) for part in digits())
    return as_data(
        train, held_out, tuple(map(str, range(10))), "scikit-learn's handwritten digits", photographs=False
    )


def _enlarged(part: Digits, image_size_px: int) -> Split:
    from PIL import Image

    size = (image_size_px, image_size_px)
    pixels = np.stack(
        [np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BILINEAR)) for digit in part.images]
    )
    return as_split(np.repeat(pixels[:, None], 3, axis=1), part.labels)


def _folder(path: Path, image_size_px: int, progress: Progress) -> Data:
    train_folder, held_out_folder = find_splits(path)
    classes = _find_classes(train_folder, held_out_folder)
    files = {folder: _find_files(folder, classes) for folder in (train_folder, held_out_folder)}
    count = sum(len(found) for found in files.values())
    refuse_too_many(count * 3 * image_size_px**2, f"{count:,} images at {image_size_px} px")
    splits = []
    problems: list[str] = []
    for folder, found in files.items():
        with progress.track(f"reading {folder.name}/", len(found)) as advance:
            images = decode([file for file, _ in found], image_size_px, problems, advance)
        splits.append(as_split(images, np.array([label for _, label in found], dtype=np.int64)))
    if problems:
        raise UserError(shortened(problems))
    return as_data(splits[0], splits[1], classes, path.name, photographs=True)


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
    held_out = next((path / name for name in HELD_OUT_FOLDERS if (path / name).is_dir()), None)
    missing = [] if (path / "train").is_dir() else ["train/"]
    missing += [] if held_out else ["val/ or test/"]
    if missing or held_out is None:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing, it is empty"
        raise UserError(f"data folder {path}: no {' and no '.join(missing)}; found {there}; {expected}")
    return path / "train", held_out


def _find_classes(train: Path, held_out: Path) -> tuple[str, ...]:
    names = {folder: sorted(d.name for d in visible(folder) if d.is_dir()) for folder in (train, held_out)}
    problems = []
    if len(names[train]) < 2:
        found = f"one class, {names[train][0]!r}" if names[train] else "no class folders"
        problems.append(f"{train}: {found}; a classifier needs two or more, one folder a class")
    for one, other in ((train, held_out), (held_out, train)):
        extra = sorted(set(names[one]) - set(names[other]))
        if extra:
            problems.append(f"classes in {one.name}/ but not in {other.name}/: {', '.join(extra[:5])}")
    for folder in (train, held_out):
        loose = [entry.name for entry in visible(folder) if not entry.is_dir()]
        if loose:
            problems.append(f"{folder}: files beside the class folders: {', '.join(sorted(loose)[:5])}")
    if problems:
        raise UserError(problems)
    return tuple(names[train])


def _find_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = [(file, label) for label, name in enumerate(classes) for file in sorted(visible(folder / name))]
    counts = np.bincount([label for _, label in found], minlength=len(classes))
    empty = [str(folder / name) for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise UserError(shortened([f"{name}: no images" for name in empty]))
    return found


def visible(folder: Path) -> Iterator[Path]:
    """What is in a folder but for hidden files: those are the file manager's (.DS_Store), not the user's."""
    return (entry for entry in folder.iterdir() if not entry.name.startswith("."))


def refuse_too_many(needed_bytes: int, what: str) -> None:
    """Refuse images that would take more of this machine's memory than they may.

    Raises:
        UserError: that they do; `what` they are comes before "take".
    """
    import psutil

    memory_bytes = psutil.virtual_memory().total
    if needed_bytes > memory_bytes * DECODED_LIMIT_FRACTION:
        raise UserError(
            f"{what} take {needed_bytes / 1e9:.1f} GB decoded, "
            f"this machine has {memory_bytes / 1e9:.1f} GB of memory: "
            "use fewer or smaller images (--image-size-px)"
        )


def decode(
    files: Sequence[Path], image_size_px: int, problems: list[str], advance: Callable[[int], None]
) -> np.ndarray:
    """Decode each file once, into (n, 3, size, size) uint8; what cannot be decoded is added to `problems`."""
    images = np.zeros((len(files), 3, image_size_px, image_size_px), dtype=np.uint8)

    def read(index: int) -> str | None:
        try:
            images[index] = _read_image(files[index], image_size_px).transpose(2, 0, 1)
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


def unreadable(path: Path, error: Exception) -> str:
    """The problem of a file that Pillow cannot read."""
    return f"{path}: not an image that can be read ({_reason(error)}); replace or remove it"


def _read_image(path: Path, size_px: int) -> np.ndarray:
    """Decode, turn upright, resize the shorter side to `size_px`, crop the middle: (size, size, 3) uint8."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        opened.draft("RGB", (2 * size_px, 2 * size_px))  # A large JPEG is decoded no larger than needed.
        image = ImageOps.exif_transpose(opened).convert("RGB")
    return np.asarray(ImageOps.fit(image, (size_px, size_px), Image.Resampling.BILINEAR))


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """What `Split` holds, as tensors."""
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


def as_data(
    train: Split, held_out: Split, classes: tuple[str, ...], source: str, *, photographs: bool
) -> Data:
    """What `Data` holds, with its digest."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for split in (train, held_out):
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return Data(train, held_out, classes, source, photographs, digest.hexdigest())


def shortened(problems: list[str]) -> list[str]:
    """The first problems, and how many more there are."""
    more = len(problems) - PROBLEMS_SHOWN
    return [*problems[:PROBLEMS_SHOWN], f"and {more} more"] if more > 0 else problems
