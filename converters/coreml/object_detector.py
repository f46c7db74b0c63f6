"""A detector's package with Apple's own suppression behind it: what Vision takes as an object detector.

    python -m converters.coreml.object_detector DETECTOR.mlpackage OBJECTS.mlpackage

A pipeline of three models: the detector as it is in its package, a small program that makes boxes of its
rows, and Core ML's suppression. It gives `coordinates`, (boxes, 4) x and y of the centre, width, height over
the image's side, and `confidence`, (boxes, classes); `iouThreshold` and `confidenceThreshold` are inputs that
may be left out.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters.coreml.blobs import MalformedError
from converters.coreml.description import DATE, PREVIEW_TYPE, map_labels
from converters.coreml.evaluation import LOGITS, Evaluator, takes_bgr, well_formed
from converters.coreml.framework import ct, proto, quiet, temporary_files
from converters.coreml.package import SUFFIX, Contents, read_package, read_specification, write_package
from converters.coreml.program import read_program
from converters.errors import ToolError, UserError

ENTRY = "boxes"  # Of the metadata: what a file says of its rows, see docs/formats/detectors.md.
COORDINATES, CONFIDENCE = "coordinates", "confidence"
ALL_COORDINATES, ALL_CONFIDENCE = "all_coordinates", "all_confidence"
IOU, SCORE = "iouThreshold", "confidenceThreshold"
BOX_VALUES = 4
LARGEST_GROWTH = math.log(1000 / 16)  # A size this much larger than the anchor's is an accident.
SUPPRESSION_VERSION = 3  # Of the specification: iOS 12.


def write_object_detector(package: str | Path, path: str | Path) -> Path:
    """Put Core ML's suppression behind a detector.

    Args:
        package: of a detector, as `convert` writes it with its labels and what its task tells.
        path: of the package to write, ending in ".mlpackage"; a package that is there already is replaced.

    Returns:
        `path`.

    Raises:
        UserError: the package is no detector's, says nothing of its anchors or classes, or cannot be written.
        ToolError: what was written does not give what the detector gives.
    """
    package, path = Path(package), Path(path)
    if path.suffix != SUFFIX or path.resolve() == package.resolve():
        raise UserError(f"{path}: name another file than the detector's, ending in {SUFFIX}")
    with well_formed(package):
        contents = read_package(package)
        labels, told = _labels(contents), _told(contents)
        decoder = Decoder(told)
        rows = _rows(contents, decoder.count, len(labels))
    with temporary_files():
        spec, weights = _pipeline(contents, decoder, rows, labels, told)
        write_package(spec, weights, path, lambda new: _check(new, contents, told))
    return path


class Decoder(nn.Module):
    """From rows to boxes over the image's side, and the classes' probabilities.

    Args:
        told: what the file says of its rows.
    """

    def __init__(self, told: Mapping[str, Any]) -> None:
        super().__init__()
        self.levels = [(int(level["cells"]), level["shapes"]) for level in told["levels"]]
        self.centre_scale, self.size_scale = float(told["centre_scale"]), float(told["size_scale"])

    @property
    def count(self) -> int:
        """Rows of an image."""
        return sum(cells**2 * len(shapes) for cells, shapes in self.levels)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(1, boxes, 4 + 1 + classes) -> (boxes, 4), (boxes, classes)."""
        counts = [cells**2 * len(shapes) for cells, shapes in self.levels]
        parts = torch.split(rows[0, :, :BOX_VALUES], counts)
        boxes = torch.cat([self._boxes(part, *level) for part, level in zip(parts, self.levels, strict=True)])
        # The background's is dropped.
        return boxes, rows[0, :, BOX_VALUES:].softmax(1)[:, 1:]

    def _boxes(self, part: Tensor, cells: int, shapes: Sequence[Sequence[float]]) -> Tensor:
        """Of one level: differences (boxes, 4) -> centres and sizes (boxes, 4), cut off at the sides."""
        sizes = torch.tensor(shapes)  # (each, 2)
        # Small tensors that are spread over the grid, so that the file holds no anchors.
        values = part.reshape(cells, cells, len(shapes), BOX_VALUES)
        places = (torch.arange(cells) + 0.5) / cells
        x = values[..., 0] * (self.centre_scale * sizes[:, 0]) + places.view(1, cells, 1)
        y = values[..., 1] * (self.centre_scale * sizes[:, 1]) + places.view(cells, 1, 1)
        halves = (values[..., 2:] * self.size_scale).clamp(max=LARGEST_GROWTH).exp() * (sizes / 2)
        centres = torch.stack([x, y], -1)
        low, high = (centres - halves).clamp(0, 1), (centres + halves).clamp(0, 1)
        return torch.cat([(low + high) / 2, high - low], -1).reshape(-1, BOX_VALUES)


@dataclass(frozen=True)
class ObjectDetector:
    """A package with suppression behind it, read back; made by `read_object_detector`.

    Attributes:
        labels: of the classes.
        iou_limit: of two boxes of a class that overlap by more, Core ML drops the less likely one.
        least_score: what is less likely is dropped.
    """

    labels: tuple[str, ...]
    iou_limit: float
    least_score: float
    _detect: Evaluator
    _decode: Evaluator

    def boxes(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All boxes before suppression, which Core ML alone can do, evaluated here.

        Args:
            image: (1, 3, h, w) float32 as the detector takes it.

        Returns:
            (boxes, 4) x and y of the centre, width, height over the image's side; (boxes, classes).
        """
        (rows,) = self._detect(image)
        coordinates, confidence = self._decode(rows)
        return coordinates, confidence


def read_object_detector(path: str | Path) -> ObjectDetector:
    """Read back what `write_object_detector` wrote, each value where the next model looks for it.

    Raises:
        UserError: it is no such package, or damaged.
    """
    path = Path(path)
    with well_formed(path):
        spec, folder = read_specification(path)
        models = list(spec.pipeline.models)
        kinds = [model.WhichOneof("Type") for model in models]
        if kinds != ["mlProgram", "mlProgram", "nonMaximumSuppression"]:
            raise MalformedError(f"expected a detector, its boxes and suppression, found {kinds}")
        _refuse_loose_ends(spec)
        detector, decoder = (Contents(path, model, folder) for model in models[:2])
        suppression = models[2].nonMaximumSuppression
        return ObjectDetector(
            tuple(suppression.stringClassLabels.vector),
            suppression.iouThreshold,
            suppression.confidenceThreshold,
            Evaluator(read_program(detector), (LOGITS,), bgr=takes_bgr(detector)),
            Evaluator(read_program(decoder), (ALL_COORDINATES, ALL_CONFIDENCE)),
        )


def _refuse_loose_ends(spec: Any) -> None:
    """Every input must be the pipeline's or something that a model before gives, of the same type."""
    known = {feature.name: feature.type for feature in spec.description.input}
    for model in spec.pipeline.models:
        for feature in model.description.input:
            if known.get(feature.name) != feature.type:
                raise MalformedError(f"nothing of its type gives the input {feature.name!r} of a model in it")
        known |= {feature.name: feature.type for feature in model.description.output}
    missing = [feature.name for feature in spec.description.output if feature.name not in known]
    if missing:
        raise MalformedError(f"nothing in it gives {', '.join(missing)}")


def _labels(contents: Contents) -> tuple[str, ...]:
    labels = map_labels(contents.spec.description.metadata.userDefined)
    if labels is None:
        raise UserError(f"{contents.path}: does not name its classes: convert the detector with labels")
    return labels


def _told(contents: Contents) -> dict[str, Any]:
    text = contents.spec.description.metadata.userDefined.get(ENTRY)
    if text is None:
        raise UserError(
            f"{contents.path}: does not say how its rows become boxes (metadata {ENTRY!r}); expected a "
            "detector's package as a run or `edgeprune convert --model ssdlite/...` writes it"
        )
    try:
        told: dict[str, Any] = json.loads(text)
        Decoder(told)
        float(told["iou_limit"]), float(told["least_score"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"metadata {ENTRY!r} cannot be read: {error!r}") from None
    return told


def _rows(contents: Contents, count: int, classes: int) -> tuple[int, ...]:
    """Shape of the detector's output, so many rows for so many classes."""
    outputs = contents.spec.description.output
    shape = tuple(outputs[0].type.multiArrayType.shape) if len(outputs) == 1 else ()
    if len(shape) != 3 or shape[2] != BOX_VALUES + 1 + classes:
        raise MalformedError(f"gives {shape or 'several outputs'}, expected rows for {classes} classes")
    if shape[1] != count:
        raise MalformedError(f"gives {shape[1]} rows, its metadata tells of {count} anchors")
    return shape


def _pipeline(
    contents: Contents,
    decoder: Decoder,
    rows: tuple[int, ...],
    labels: Sequence[str],
    told: Mapping[str, Any],
) -> tuple[Any, Path]:
    """The specification of the whole, and the folder of its weights."""
    try:
        with quiet():
            boxes = _converted(decoder, rows, contents.spec.specificationVersion)
            boxes_spec = boxes.get_spec()
            models = (
                ct.models.MLModel(
                    contents.spec, weights_dir=str(contents.folder / "weights"), skip_model_load=True
                ),
                boxes,
                ct.models.MLModel(_suppression(boxes_spec, labels, told), skip_model_load=True),
            )
            whole = ct.utils.make_pipeline(*models)
    except Exception as error:
        raise ToolError(f"{contents.path}: coremltools could not make a pipeline of it: {error}") from error
    spec = whole.get_spec()
    for model in spec.pipeline.models:  # What the whole says, its parts need not.
        model.description.ClearField("metadata")
    metadata = spec.description.metadata
    metadata.CopyFrom(contents.spec.description.metadata)
    metadata.userDefined[PREVIEW_TYPE] = "objectDetector"
    metadata.userDefined.pop(DATE, None)
    return spec, Path(whole.weights_dir)


def _converted(decoder: Decoder, rows: tuple[int, ...], version: int) -> Any:
    """In float32: in float16 corners would be off by a quarter of a pixel, and there is little to compute."""
    exported = torch.export.export(decoder.eval(), (torch.zeros(rows),)).run_decompositions({})
    return ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target(version),
        compute_precision=ct.precision.FLOAT32,
        inputs=[ct.TensorType(name=LOGITS, shape=rows, dtype=float)],
        outputs=[ct.TensorType(name=name, dtype=float) for name in (ALL_COORDINATES, ALL_CONFIDENCE)],
        skip_model_load=True,
    )


def _suppression(boxes: Any, labels: Sequence[str], told: Mapping[str, Any]) -> Any:
    """Core ML's non-maximum suppression, class by class, behind the program that makes boxes."""
    spec = proto.Model_pb2.Model(specificationVersion=SUPPRESSION_VERSION)
    given = {feature.name: feature for feature in boxes.description.output}
    for name, result, width in (
        (ALL_CONFIDENCE, CONFIDENCE, len(labels)),
        (ALL_COORDINATES, COORDINATES, BOX_VALUES),
    ):
        spec.description.input.add().CopyFrom(given[name])
        feature = spec.description.output.add(name=result)
        feature.type.multiArrayType.dataType = given[name].type.multiArrayType.dataType
        ranges = feature.type.multiArrayType.shapeRange.sizeRanges
        ranges.add(lowerBound=0, upperBound=-1)  # As many as stay.
        ranges.add(lowerBound=width, upperBound=width)
    own = spec.nonMaximumSuppression
    for name, what in ((IOU, "overlap of two boxes"), (SCORE, "confidence of a box")):
        limit = spec.description.input.add(name=name, shortDescription=f"limit of the {what}, 0 to 1")
        limit.type.doubleType.SetInParent()
        limit.type.isOptional = True
    own.confidenceInputFeatureName, own.coordinatesInputFeatureName = ALL_CONFIDENCE, ALL_COORDINATES
    own.confidenceOutputFeatureName, own.coordinatesOutputFeatureName = CONFIDENCE, COORDINATES
    own.iouThresholdInputFeatureName, own.confidenceThresholdInputFeatureName = IOU, SCORE
    own.iouThreshold, own.confidenceThreshold = float(told["iou_limit"]), float(told["least_score"])
    own.pickTop.perClass = True
    own.stringClassLabels.vector.extend(labels)
    return spec


def _check(path: Path, detector: Contents, told: Mapping[str, Any]) -> None:
    """Hold the boxes of a package as it lies on disk against the detector's own rows, decoded by torch."""
    whole, program = read_object_detector(path), read_program(detector)
    shape = program.inputs[0].shape
    assert shape is not None  # `read_package` and `convert` see to it.
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    (rows,) = Evaluator(program, (LOGITS,), bgr=takes_bgr(detector))(image)
    wanted = Decoder(told)(torch.from_numpy(rows))
    for found, exact in zip(whole.boxes(image), wanted, strict=True):
        if not np.allclose(found, exact.numpy(), atol=1e-4):
            raise ToolError(f"{path.name}: its boxes are not those of the detector's rows; no file is kept")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {__doc__.splitlines()[2].strip()}")
    try:
        write_object_detector(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
