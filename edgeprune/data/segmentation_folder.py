"""A segmentation folder: images, and for each a mask with the class of every pixel.

FOLDER/
  train/images/NAME.jpg or .png    train/masks/NAME.png    grey or palette: the index of each pixel's class
  val/ (or test/)                  likewise                255: a pixel that does not count
  classes.txt                      optional: a name a line, in the order of the indices

Masks that are all black and white, with the values 0 and 255 alone, have two classes: 255 is the foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from edgeprune.data.dataset import Data, InMemory, Split, as_data, as_split, spread
from edgeprune.data.files import decode, in_threads, shortened, unreadable, visible
from edgeprune.data.labels import IGNORED, LabelKind
from edgeprune.data.memory import refuse_too_many
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import find_splits
from edgeprune.errors import UserError
from edgeprune.progress import Progress

IMAGES, MASKS, CLASSES_FILE = "images", "masks", "classes.txt"
LABELS = LabelKind.MAP
FOLDERS = f"{IMAGES}/ and {MASKS}/ in it"
SUFFIXES = (".jpg", ".jpeg", ".png")
UNLABELLED = 255  # in a mask
BLACK_AND_WHITE = {0, UNLABELLED}
FOREGROUND = ("background", "foreground")
MASK_MODES = ("L", "P", "1")  # as Pillow calls grey and palette of 8 bits, and black and white of one
EXIF_ORIENTATION, EXIF_ON_ITS_SIDE = 0x0112, range(5, 9)
OUTPUTS_AT_ONCE = 5  # maps of all held-out images in memory: each variant's, a file's, and one on the way


@dataclass(frozen=True)
class ImageAndMask:
    """An image, and the mask with the classes of its pixels."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class MaskValues:
    """What the values of masks mean.

    Attributes:
        names: of the classes, in the order of their indices; empty where nothing says them.
        black_and_white: whether 255 is the second class, not a pixel that does not count.
    """

    names: tuple[str, ...]
    black_and_white: bool


def takes(path: Path | None) -> bool:
    """See `sources.Source`: any path that no other source takes."""
    return path is not None


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load a folder of images and masks.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    assert path is not None  # What `takes` says.
    image_size_px = prepare.image_size_px
    problems: list[str] = []
    folders = find_splits(path, FOLDERS)
    pairs = {folder: _pairs(folder, problems) for folder in folders}
    names = _read_classes(path / CLASSES_FILE, problems)
    pixels = image_size_px**2 * sum(map(len, pairs.values()))
    refuse_too_many(
        5 * pixels, f"{pixels // image_size_px**2:,} images at {image_size_px} px with their masks"
    )
    values = _values(names, [pair for own in pairs.values() for pair in own])
    train, held_out = (
        _read(own, values, prepare, problems, progress, folder.name) for folder, own in pairs.items()
    )
    if problems:
        raise UserError(shortened(problems))
    classes = values.names or _numbered((train, held_out))
    _refuse_absent(train, classes, folders[0] / MASKS)
    _refuse_large_maps(len(held_out), len(classes), image_size_px)
    return as_data(train, held_out, classes, path.name, photographs=True)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly over all.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    assert path is not None  # What `takes` says.
    problems: list[str] = []
    training, folder = find_splits(path, FOLDERS)
    pairs = _pairs(folder, problems)
    names = _read_classes(path / CLASSES_FILE, problems)
    values = _values(names, [*pairs, *_pairs(training, [])])
    chosen = [pairs[place] for place in spread(len(pairs), count)]
    found = _read(chosen, values, prepare, problems, Progress(Console(quiet=True)), folder.name)
    if problems:
        raise UserError(shortened(problems))
    return found


def _pairs(folder: Path, problems: list[str]) -> list[ImageAndMask]:
    """The images of a folder with their masks, by name; what is missing is added to `problems`."""
    missing = [f"{folder / name}: no such folder" for name in (IMAGES, MASKS) if not (folder / name).is_dir()]
    if missing:
        problems += missing
        return []
    files = sorted(visible(folder / IMAGES))
    images = {file.stem: file for file in files if file.suffix.lower() in SUFFIXES}
    masks = {file.stem: file for file in sorted(visible(folder / MASKS)) if file.suffix.lower() == ".png"}
    problems += [
        f"{file}: {'two images of this name' if file.suffix.lower() in SUFFIXES else 'not a .jpg or .png'}"
        for file in files
        if images.get(file.stem) != file
    ]
    problems += [
        f"{images[name]}: no mask {folder / MASKS / name}.png" for name in images if name not in masks
    ]
    problems += [
        f"{masks[name]}: no image of this name in {folder / IMAGES}" for name in masks if name not in images
    ]
    if not files:
        problems.append(f"{folder / IMAGES}: no images")
    return [ImageAndMask(images[name], masks[name]) for name in images if name in masks]


def _read_classes(path: Path, problems: list[str]) -> tuple[str, ...]:
    """The names in a file, in order; none where there is no such file."""
    if not path.exists():
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}: expected a text file with one class name a line")
        return ()
    if not 2 <= len(set(names)) == len(names) <= UNLABELLED:
        problems.append(f"{path}: {len(names)} names: expected 2 to {UNLABELLED} different ones, a line each")
        return ()
    return names


def _read(
    pairs: Sequence[ImageAndMask],
    values: MaskValues,
    prepare: Preprocessing,
    problems: list[str],
    progress: Progress,
    title: str,
) -> InMemory:
    """Images and masks; what is wrong with any of them is added to `problems`."""
    with progress.track(f"reading {title}/{IMAGES}/", len(pairs)) as advance:
        images = decode([pair.image for pair in pairs], prepare, problems, advance)
    masks = np.zeros((len(pairs), prepare.image_size_px, prepare.image_size_px), np.int16)
    with progress.track(f"reading {title}/{MASKS}/", len(pairs)) as advance:
        in_threads(_reader(pairs, masks, values, prepare), len(pairs), problems, advance)
    return as_split(images, masks)


def _reader(
    pairs: Sequence[ImageAndMask], masks: np.ndarray, values: MaskValues, prepare: Preprocessing
) -> Callable[[int], str | None]:
    """What reads one mask into its place and says what is wrong with it."""

    def read(index: int) -> str | None:
        pair = pairs[index]
        try:
            masks[index] = _read_mask(pair, prepare, values)
        except UserError as error:
            return f"{pair.mask}: {error}"
        except Exception as error:  # Pillow raises many types on a bad file.
            return unreadable(pair.mask, error)
        return None

    return read


def _read_mask(pair: ImageAndMask, prepare: Preprocessing, values: MaskValues) -> np.ndarray:
    """A mask cut out as its image is, (size, size) int16.

    Raises:
        UserError: what is wrong with what the mask holds.
    """
    from PIL import Image

    with Image.open(pair.mask) as mask:
        mode, size = mask.mode, mask.size
        indices = np.asarray(mask.convert("L") if mode == "1" else mask)
    if mode not in MASK_MODES:
        raise UserError(f"its mode is {mode}: expected grey or palette, 8 bits, the index of a class a pixel")
    wanted = _size(pair.image)
    if wanted is not None and size != wanted:
        raise UserError(f"{size[0]}x{size[1]} pixels, its image has {wanted[0]}x{wanted[1]}")
    classes = len(values.names) or UNLABELLED
    wrong = sorted(set(np.unique(indices).tolist()) - {*range(classes), UNLABELLED})
    if wrong:
        shown = ", ".join(map(str, wrong[:5]))
        raise UserError(f"indices {shown} of classes, of which there are {classes} (0 to {classes - 1})")
    if values.black_and_white:
        indices = (indices == UNLABELLED).astype(np.uint8)
    # Nearest: between two classes there is none.
    fitted = prepare.fitted(Image.fromarray(indices), "nearest")
    labels = np.asarray(fitted).astype(np.int16)
    labels[labels == UNLABELLED] = IGNORED
    if (labels == IGNORED).all():
        raise UserError(f"no pixel counts, all are {UNLABELLED}")
    return labels


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image once it is turned upright; None of one that cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in EXIF_ON_ITS_SIDE
    except Exception:  # Pillow raises many types on a bad file; whoever reads the image itself says so.
        return None
    return (height, width) if turned else (width, height)


def _values(names: tuple[str, ...], pairs: Sequence[ImageAndMask]) -> MaskValues:
    black_and_white = len(names) in (0, len(FOREGROUND)) and _are_black_and_white(pairs)
    return MaskValues(names or (FOREGROUND if black_and_white else ()), black_and_white)


def _are_black_and_white(pairs: Sequence[ImageAndMask]) -> bool:
    """Whether the values 0 and 255, and no others, are in these masks; another one ends the search."""
    from PIL import Image

    seen: set[int] = set()
    for pair in pairs:
        try:
            with Image.open(pair.mask) as mask:
                counts = mask.histogram()[: UNLABELLED + 1]
        except Exception:  # Pillow raises many types on a bad file; whoever reads the mask itself says so.
            continue
        seen |= {value for value, count in enumerate(counts) if count}
        if seen - BLACK_AND_WHITE:
            return False
    return seen == BLACK_AND_WHITE


def _refuse_absent(train: InMemory, classes: Sequence[str], masks: Path) -> None:
    """Refuse classes that no training pixel has: nothing can be learnt of them.

    Raises:
        UserError: there are some.
    """
    counts = np.bincount(train.labels[train.labels != IGNORED].numpy().ravel(), minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise UserError(
            f"{masks}: {len(absent)} of {len(classes)} classes have no pixel in the training masks: {shown}; "
            "a mask holds the index of each pixel's class, from 0 without gaps, or 0 and 255 alone"
        )


def _numbered(splits: Sequence[InMemory]) -> tuple[str, ...]:
    """Classes by their indices, as many as there are in the masks."""
    highest = max(int(split.labels.max()) for split in splits)
    return tuple(map(str, range(max(highest + 1, 2))))


def _refuse_large_maps(images: int, classes: int, image_size_px: int) -> None:
    needed_bytes = OUTPUTS_AT_ONCE * 4 * images * classes * image_size_px**2
    refuse_too_many(
        needed_bytes, f"maps of {classes} classes for {images:,} held-out images at {image_size_px} px"
    )
