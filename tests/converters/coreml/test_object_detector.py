"""Core ML's own suppression behind a detector: the package that Vision takes, read back piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters import coreml
from converters.coreml import object_detector
from converters.coreml.description import PREVIEW_PARAMETERS
from converters.coreml.package import read_specification, write_package
from converters.errors import ToolError, UserError
from converters.facts import Normalization, size_bytes
from edgeprune.models.anchors import Anchors
from edgeprune.tasks.detection import Detection
from edgeprune.tasks.detection.suppression import decoded

pytestmark = pytest.mark.slow
SIZE_PX = 16
ANCHORS = Anchors(4, (0.3, 0.6, 0.9), ())  # 2 boxes in each of 4 x 4 and 2 x 2 cells
LABELS = ("cat", "dog", "eel")
WIDTH = 4 + 1 + len(LABELS)
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(3, 2 * WIDTH, 5, 4, 2), nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(images) * 6
        maps = (fine, self.coarse(fine) * 3)
        return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, WIDTH) for m in maps], 1)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "rows.mlpackage"
    coreml.convert(
        Rows().eval(),
        torch.zeros(1, 3, SIZE_PX, SIZE_PX),
        path,
        labels=LABELS,
        normalization=HALF,
        metadata={**Detection(ANCHORS, SIZE_PX).metadata(), "author": "someone"},
    )
    return path


@pytest.fixture(scope="module")
def objects(detector: Path) -> Path:
    return coreml.write_object_detector(detector, detector.with_name("objects.mlpackage"))


def test_the_boxes_before_suppression_are_those_that_we_decode(detector: Path, objects: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 3, SIZE_PX, SIZE_PX)).astype(np.float32)
    rows = coreml.load(detector, native=False).predict(image)[0]
    corners, scores = decoded(rows, ANCHORS, SIZE_PX)
    read = coreml.read_object_detector(objects)
    coordinates, confidence = read.boxes(image)
    assert (confidence.max(1) > read.least_score).sum() > 10
    np.testing.assert_allclose(confidence, scores, atol=1e-5)
    low, high = (coordinates[:, :2] + sign * coordinates[:, 2:] / 2 for sign in (-1, 1))
    np.testing.assert_allclose(np.concatenate([low, high], 1) * SIZE_PX, corners, atol=1e-3)


def test_what_vision_asks_for_is_there(detector: Path, objects: Path) -> None:
    read = coreml.read_object_detector(objects)
    assert (read.labels, read.iou_limit, read.least_score) == (LABELS, 0.5, 0.3)
    description = read_specification(objects)[0].description
    assert [(one.name, one.type.isOptional) for one in description.input] == [
        ("image", False),
        ("iouThreshold", True),
        ("confidenceThreshold", True),
    ]
    assert description.input[0].type.WhichOneof("Type") == "imageType"
    found = {one.name: one.type.multiArrayType.shapeRange.sizeRanges[1] for one in description.output}
    assert {name: each.upperBound for name, each in found.items()} == {"confidence": 3, "coordinates": 4}
    assert description.metadata.author == "someone"
    assert "levels" in description.metadata.userDefined["boxes"]


def test_the_same_detector_gives_the_same_bytes_and_not_many_more(detector: Path, objects: Path) -> None:
    again = coreml.write_object_detector(detector, detector.with_name("again.mlpackage"))
    files = [sorted(file for file in path.rglob("*") if file.is_file()) for path in (objects, again)]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert size_bytes(objects) < size_bytes(detector) + 25_000


def changed(detector: Path, path: Path, change: Any) -> Path:
    spec, folder = read_specification(detector)
    change(spec)
    write_package(spec, folder / "weights", path)
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spec: spec.description.metadata.userDefined.pop("boxes"), "how its rows become boxes"),
        (
            lambda spec: spec.description.metadata.userDefined.update({"boxes": "{}"}),
            "metadata 'boxes' cannot be read",
        ),
        (
            lambda spec: spec.description.metadata.userDefined.pop(PREVIEW_PARAMETERS),
            "does not name its classes",
        ),
        (
            lambda spec: spec.description.metadata.userDefined.update(
                Detection(Anchors(8, (0.3, 0.6), ()), SIZE_PX).metadata()
            ),
            "40 rows, its metadata tells of 8 anchors",
        ),
    ],
)
def test_a_package_that_is_no_detectors_is_refused(
    change: Any, told: str, detector: Path, tmp_path: Path
) -> None:
    wrong = changed(detector, tmp_path / "wrong.mlpackage", change)
    with pytest.raises(UserError, match=told):
        coreml.write_object_detector(wrong, tmp_path / "objects.mlpackage")
    assert not (tmp_path / "objects.mlpackage").exists()


def test_boxes_that_are_not_the_detectors_are_never_kept(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = object_detector._converted

    def wrong(decoder: Any, *others: Any) -> Any:
        decoder.size_scale *= 1.1
        return converted(decoder, *others)

    monkeypatch.setattr(object_detector, "_converted", wrong)
    with pytest.raises(ToolError, match="not those of the detector's rows"):
        coreml.write_object_detector(detector, tmp_path / "objects.mlpackage")
    assert not list(tmp_path.iterdir())


def test_a_detector_without_suppression_is_no_object_detector(detector: Path) -> None:
    with pytest.raises(UserError, match="expected a detector, its boxes and suppression"):
        coreml.read_object_detector(detector)
