"""Image folders made by the tests: each class a colour, with noise."""

import io
import json
import tarfile
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


def write_boxes(root: Path, *, train: int = 24, held_out: int = 8, size_px: int = 40) -> Path:
    """Write YOLO's images/ and labels/: a square of one of the colours on grey, with noise."""
    random = np.random.default_rng(0)
    colours = np.array(list(COLOURS.values()))
    for split, count in (("train", train), ("val", held_out)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            side, label = size_px // 2, index % len(COLOURS)
            top, left = random.integers(0, size_px - side, 2)
            pixels = 128 + random.integers(-30, 30, (size_px, size_px, 3))
            pixels[top : top + side, left : left + side] += colours[label] - 128
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(root / "images" / split / f"{index:03}.jpg")
            centre = f"{(left + side / 2) / size_px} {(top + side / 2) / size_px}"
            text = f"{label} {centre} {side / size_px} {side / size_px}\n"
            (root / "labels" / split / f"{index:03}.txt").write_text(text)
    (root / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    return root


def write_masks(
    root: Path, *, train: int = 24, held_out: int = 8, size_px: int = 40, names: bool = True
) -> Path:
    """Write train/ and val/ with images/ and masks/: a square of one of the colours on grey, with noise."""
    random = np.random.default_rng(0)
    palette = np.array([(128, 128, 128), *COLOURS.values()])
    for split, count in (("train", train), ("val", held_out)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            classes = np.zeros((size_px, size_px + 7), np.uint8)
            top, left = random.integers(0, size_px // 2, 2)
            classes[top : top + size_px // 2, left : left + size_px // 2] = 1 + index % len(COLOURS)
            noise = random.integers(-30, 30, (*classes.shape, 3))
            pixels = np.clip(palette[classes] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / "images" / f"{index:03}.jpg")
            Image.fromarray(classes).save(root / split / "masks" / f"{index:03}.png")
    if names:
        (root / "classes.txt").write_text("\n".join(["grey", *COLOURS]) + "\n")
    return root


def write_shards(root: Path, folder: Path) -> Path:
    """What `write_folder` wrote, in two shards of train and one of val (labels as .json)."""
    folder.mkdir()
    classes = sorted(entry.name for entry in (root / "train").iterdir())
    for split, count in (("train", 2), ("val", 1)):
        files = sorted((root / split).rglob("*.jpg"))
        for shard in range(count):
            with tarfile.open(folder / f"{split}-{shard:04}.tar", "w") as archive:
                for number, file in enumerate(files[shard::count]):
                    key, label = f"{shard}/{number:05}", classes.index(file.parent.name)
                    add_file(archive, f"{key}.jpg", file.read_bytes())
                    if split == "train":
                        add_file(archive, f"{key}.cls", str(label).encode())
                    else:
                        add_file(archive, f"{key}.json", json.dumps({"label": label}).encode())
    (folder / "classes.txt").write_text("\n".join(classes))
    return folder


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into a tar that is being written."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
