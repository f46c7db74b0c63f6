"""Writes what the sample apps must compute, from real files and images, for tests in every language.

    python sample_apps/vectors/write_vectors.py OUT FILE.tflite ... --images IMAGE ...

OUT/vectors.json, read by the Node, Kotlin and Swift tests alike, has

    files           what each file says of itself: its JSON, what that means, its shapes
    images          RGB pixels
    preparations    images resized and cropped by Pillow: as each file says, and in other ways
    answers         for each file and image: the tensor fed, what LiteRT here makes of it, the top classes
    orientations    a JPEG that says how it is to be turned, its pixels, and those turned upright
    maps            the likeliest class of each pixel, of maps in both layouts
    suppressions    boxes and what torchvision's non-maximum suppression leaves of them
    detections      made-up rows of a detector, what it says of them, and the boxes that Python makes of them
    timings         medians and quartiles, as edgeprune bench takes them

Arrays are base64: uint8, or float32 in little-endian order.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.ops import batched_nms

from converters.facts import InputSpec
from converters.files import write_text
from converters.litert import metadata
from converters.litert.evaluation import image_input, load
from converters.litert.graph import Graph, read_file
from edgeprune.commands.bench import spread
from edgeprune.data.preprocessing import INTERPOLATIONS, KEY, Preprocessing
from edgeprune.models.anchors import CENTRE_SCALE, SIZE_SCALE, Anchors
from edgeprune.tasks.detection.suppression import IOU_LIMIT, MOST_BOXES, find

SCHEMA = 1
TOP = 3
# Besides what the files say: (size, resize_px) of squares cut from every image.
WAYS = ((24, None), (24, 32), (17, 29))
SEED = 0
DETECTOR_PX, LEAST_SCORE = 64, 0.3


def main() -> None:
    """Write the vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write vectors.json to")
    parser.add_argument("files", type=Path, nargs="+", help=".tflite files, as edgeprune writes them")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="photographs or pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = write_text(options.out / "vectors.json", json.dumps(vectors(options.files, options.images)))
    sys.stdout.write(f"{path}\n")


def vectors(files: Sequence[Path], images: Sequence[Path]) -> dict[str, Any]:
    """Everything, as plain data."""
    decoded = {path.name: ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in images}
    described = {path: describe(path) for path in files}
    return {
        "schema": SCHEMA,
        "files": [{"path": str(path.resolve()), **told} for path, told in described.items()],
        "images": [
            {"name": name, "width_px": image.width, "height_px": image.height, "rgb": packed(image)}
            for name, image in decoded.items()
        ],
        "preparations": [
            prepared(name, image, preprocessing)
            for name, image in decoded.items()
            for preprocessing in ways(described.values())
        ],
        "answers": [answer for path in files for answer in answers(path, decoded)],
        "orientations": list(orientations()),
        "maps": list(maps()),
        "suppressions": list(suppressions()),
        "detections": list(detections()),
        "timings": list(timings()),
    }


def describe(path: Path) -> dict[str, Any]:
    """What a file says of itself, and its shapes."""
    graph = read_file(path)
    spec, _ = image_input(graph, path)
    told = preprocessing_of(graph, spec)
    normalization = spec.normalization
    return {
        "json": json.dumps(metadata.read(graph)),
        "range": spec.range,
        "mean": None if normalization is None else normalization.mean,
        "std": None if normalization is None else normalization.std,
        "labels": spec.labels,
        "resize_px": told.resize_px,
        "interpolation": told.interpolation,
        "input_shape": [int(side) for side in graph.shape(int(graph.subgraph.inputs[0]))],
        "output_shape": [int(side) for side in graph.shape(int(graph.subgraph.outputs[0]))],
    }


def preprocessing_of(graph: Graph, spec: InputSpec) -> Preprocessing:
    """How a file says that images are prepared."""
    told = json.loads(metadata.read(graph).get("metadata", {}).get(KEY, "{}"))
    default = Preprocessing()
    return Preprocessing(
        image_size_px=spec.shape[1],
        resize_px=told.get("resize_px"),
        interpolation=told.get("interpolation", default.interpolation),
    )


def ways(described: Iterable[dict[str, Any]]) -> list[Preprocessing]:
    """Those of the files, each once, and every interpolation with and without a margin to crop."""
    own = [
        Preprocessing(told["input_shape"][1], told["resize_px"], told["interpolation"]) for told in described
    ]
    others = [Preprocessing(*way, interpolation) for way in WAYS for interpolation in INTERPOLATIONS]
    squeezed = Preprocessing(24, whole_image=True)
    return list(dict.fromkeys([*own, *others, squeezed]))


def prepared(name: str, image: Image.Image, preprocessing: Preprocessing) -> dict[str, Any]:
    """An image as the training side prepares it."""
    return {
        "image": name,
        "size_px": preprocessing.image_size_px,
        "resize_px": preprocessing.resize_px,
        "interpolation": preprocessing.interpolation,
        "whole_image": preprocessing.whole_image,
        "rgb": packed(preprocessing.fitted(image)),
    }


def answers(path: Path, images: dict[str, Image.Image]) -> Iterator[dict[str, Any]]:
    """What a file gives for each image: of classifiers that take plain pixels, or say what they take."""
    graph = read_file(path)
    spec, channels_last = image_input(graph, path)
    preprocessing, model = preprocessing_of(graph, spec), load(path)
    for name, image in images.items():
        pixels = np.asarray(preprocessing.fitted(image), np.float32)
        if spec.range is None:
            if spec.normalization is None:
                raise SystemExit(f"{path} does not say how pixels are normalised")
            mean, std = (np.float32(values) for values in (spec.normalization.mean, spec.normalization.std))
            pixels = (pixels / np.float32(255) - mean) / std
        tensor = pixels.transpose(2, 0, 1)
        values = model.predict(tensor[None])[0]
        probabilities = torch.softmax(torch.from_numpy(values), 0).numpy()
        order = np.argsort(-probabilities, kind="stable")[:TOP]
        labels = spec.labels or [f"class {number}" for number in range(len(values))]
        yield {
            "file": str(path.resolve()),
            "image": name,
            "channels_last": channels_last,
            "tensor": packed(pixels if channels_last else tensor),
            "values": values.tolist(),
            "top": [{"name": labels[i], "probability": float(probabilities[i])} for i in order],
        }


def orientations() -> Iterator[dict[str, Any]]:
    """Pixels, a JPEG of that orientation (pixels of a JPEG are not exact), and the pixels upright."""
    pixels = np.random.default_rng(SEED).integers(0, 256, (3, 5, 3), np.uint8)
    for orientation in range(1, 9):
        image, exif, jpeg = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(jpeg, "JPEG", exif=exif)
        image.getexif()[ExifTags.Base.Orientation] = orientation
        turned = ImageOps.exif_transpose(image)
        yield {
            "jpeg": base64.b64encode(jpeg.getvalue()).decode(),
            "width_px": image.width,
            "height_px": image.height,
            "rgb": packed(pixels),
            "upright_width_px": turned.width,
            "upright_height_px": turned.height,
            "upright": packed(turned),
        }


def maps() -> Iterator[dict[str, Any]]:
    """Maps of made-up values: the likeliest class of each pixel, the first of equal ones."""
    random = np.random.default_rng(SEED)
    values = random.normal(size=(5, 7, 4)).astype(np.float32)
    values[0, 0] = 1.0
    likeliest = values.argmax(axis=2).astype(np.uint8)
    for channels_last in (True, False):
        laid_out = values if channels_last else values.transpose(2, 0, 1)
        yield {
            "shape": [1, *laid_out.shape],
            "channels_last": channels_last,
            "values": packed(laid_out),
            "classes": packed(likeliest),
        }


def suppressions() -> Iterator[dict[str, Any]]:
    """Boxes (y1, x1, y2, x2) with scores and classes, and the places of those kept, the best first."""
    random = np.random.default_rng(SEED)
    corners = random.uniform(0, 1, (200, 2, 2))
    scattered = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    crowd = np.clip(np.array([0.2, 0.3, 0.6, 0.8]) + random.normal(0, 0.05, (60, 4)), 0, 1)
    square = [0.0, 0.0, 1.0, 1.0]
    cases = (
        (np.zeros((0, 4)), 0.5),
        (np.array([square, square, square]), 0.5),
        (np.array([square, [0.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 2.0]]), 0.5),  # overlaps of 1/2 and 0
        (np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], square]), 0.5),  # boxes without an area
        (scattered, 0.3),
        (crowd, 0.6),
        (crowd, 0.45),
    )
    for boxes, threshold in cases:
        boxes = boxes.astype(np.float32)
        scores = random.permutation(len(boxes)).astype(np.float32) / max(len(boxes), 1)
        classes = random.integers(0, 3, len(boxes))
        corners_xy = torch.from_numpy(boxes[:, [1, 0, 3, 2]])
        kept = batched_nms(corners_xy, torch.from_numpy(scores), torch.from_numpy(classes), threshold)
        yield {
            "boxes": boxes.tolist(),
            "scores": scores.tolist(),
            "classes": classes.tolist(),
            "iou_threshold": threshold,
            "kept": kept.tolist(),
        }


def detections() -> Iterator[dict[str, Any]]:
    """Rows of made-up values for two classes, many boxes overlapping, and those that are found."""
    random = np.random.default_rng(SEED)
    anchors, classes = Anchors(16, (0.2, 0.5, 1.0), (2.0,)), 2
    levels = [
        {"cells": cells, "shapes": anchors.shapes(level)}
        for level, cells in enumerate(anchors.sides(DETECTOR_PX))
    ]
    boxes = {
        "size_px": DETECTOR_PX,
        "levels": levels,
        "centre_scale": CENTRE_SCALE,
        "size_scale": SIZE_SCALE,
        "least_score": LEAST_SCORE,
        "iou_limit": IOU_LIMIT,
        "most_boxes": MOST_BOXES,
    }
    count = len(anchors.boxes(DETECTOR_PX))
    for spread_of_logits in (0.5, 3.0):
        rows = random.normal(0, spread_of_logits, (count, 4 + 1 + classes)).astype(np.float32)
        found = find(rows, anchors, DETECTOR_PX, LEAST_SCORE)
        yield {
            "boxes": json.dumps(boxes),
            "classes": classes,
            "rows": packed(rows),
            "found": [
                {"label": int(label), "score": float(score), "corners": corners.tolist()}
                for label, score, corners in zip(found.classes, found.scores, found.corners, strict=True)
            ],
        }


def timings() -> Iterator[dict[str, Any]]:
    """Times and their spread."""
    random = np.random.default_rng(SEED)
    for count in (1, 2, 5, 50):
        times = random.lognormal(1.0, 0.4, count).tolist()
        found = spread(times)
        assert found is not None
        yield {"milliseconds": times, "low": found.low, "median": found.median, "high": found.high}


def packed(array: Any) -> str:
    """An array as base64: bytes, or float32 in little-endian order."""
    array = np.asarray(array)
    kind = np.uint8 if array.dtype == np.uint8 else np.dtype("<f4")
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


if __name__ == "__main__":
    main()
