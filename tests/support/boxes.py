"""Small data sets with boxes, the same one in three formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cell", "platelet")
SIZE = (64, 48)
# By split and image: (left, top, right, bottom, class); the second training image has none.
SPLITS = {
    "train": {"a": [(4, 6, 20, 30, 0), (30, 10, 60.5, 40, 1)], "b": [], "c": [(0, 0, 64, 48, 0)]},
    "val": {"d": [(10.25, 10, 30, 30, 1)], "e": [(32, 1, 40, 9, 0)]},
}
Boxes = Sequence[tuple[float, float, float, float, int]]


def picture(path: Path) -> None:
    """Write an image whose pixels follow from its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(ord(path.stem[0])).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def write_coco(folder: Path) -> Path:
    """Write the data set as COCO's JSON."""
    for split, images in SPLITS.items():
        numbers = {name: number for number, name in enumerate(images, start=1)}
        annotations = [
            {
                "image_id": numbers[name],
                "category_id": 1 + label,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            for name, boxes in images.items()
            for left, top, right, bottom, label in boxes
        ]
        content = {
            "images": [
                {"id": number, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]}
                for name, number in numbers.items()
            ],
            "annotations": [{"id": place, **one} for place, one in enumerate(annotations, start=1)],
            "categories": [{"id": 1 + place, "name": name} for place, name in enumerate(CLASSES)],
        }
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for name in images:
            picture(folder / split / f"{name}.png")
    return folder


def voc_xml(boxes: Boxes, classes: Sequence[str] = CLASSES, size: tuple[int, int] = SIZE) -> str:
    """One file of Pascal VOC's."""
    objects = "".join(
        f"<object><name>{classes[label]}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for left, top, right, bottom, label in boxes
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{sides}{objects}</annotation>"


def write_voc(folder: Path) -> Path:
    """Write the data set as Pascal VOC's XML."""
    for name in ("Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for split, images in SPLITS.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(images))
        for name, boxes in images.items():
            picture(folder / "JPEGImages" / f"{name}.png")
            (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(boxes))
    return folder


def write_yolo(folder: Path) -> Path:
    """Write the data set as YOLO's text."""
    width, height = SIZE
    for split, images in SPLITS.items():
        (folder / "labels" / split).mkdir(parents=True)
        for name, boxes in images.items():
            picture(folder / "images" / split / f"{name}.png")
            lines = [
                f"{label} {(left + right) / 2 / width!r} {(top + bottom) / 2 / height!r} "
                f"{(right - left) / width!r} {(bottom - top) / height!r}"
                for left, top, right, bottom, label in boxes
            ]
            if lines:
                (folder / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("names:\n" + "".join(f"  {i}: {n}\n" for i, n in enumerate(CLASSES)))
    return folder
