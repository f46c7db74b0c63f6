"""The records of a report and `report.json`, the one source every page is rendered from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from converters.files import write_text
from edgeprune import parsing
from edgeprune.errors import UserError

SCHEMA = 1
FILE_NAME = "report.json"
METRICS = ("top1", "miou")


class Scored:
    """A record that has one of `METRICS`, and null for the other."""

    if TYPE_CHECKING:  # The records' own fields, in the places that they have there.
        top1: float | None
        miou: float | None

    @property
    def metric(self) -> str:
        """The metric that it has."""
        return "miou" if self.top1 is None else "top1"

    @property
    def score(self) -> float:
        """What it has of that, 0 to 1."""
        score: float = getattr(self, self.metric)
        return score


@dataclass(frozen=True)
class Row(Scored):
    """One variant on one target: one file, measured from disk.

    Attributes:
        variant: what was done to the weights: "dense", "block80", "channels".
        target: name in `converters.targets.TARGETS`.
        path: of the file, relative to the run folder.
        bytes: size on disk.
        top1: of the file on the held-out images, 0 to 1; None: not what this model is measured by.
        top1_drop_points: percentage points below the dense float32 torch model on the same images.
        agreement: share of images, for maps of pixels, where file and its own torch variant name the same
            class, 0 to 1.
        max_relative_error: largest |file - torch| output over the largest |torch| output.
        zero_fraction: zeros among all weights of convolution and linear layers, counted in the decoded file.
        prunable_zero_fraction: the same over 1x1 convolutions and linear layers only.
        bits_per_weight: stored bits over the number of those weights.
        sparse_runtime: whether the runtime will use sparse kernels; None when unknown.
        sparse_runtime_reason: why not, or why it is unknown.
        images: how many images were run.
        sha256: of the file.
        input_range: (low, high) of the pixels the file takes; None: what the torch model takes.
        layers: one dict a weighted layer, the fields of `converters.facts.LayerFacts`.
        miou: mean intersection over union of the classes, of the file's maps of the held-out images, 0 to 1;
            None: not what this model is measured by.
        miou_drop_points: percentage points below the dense float32 torch model on the same images.
        not_measured: why, of each metric that is None.
    """

    variant: str
    target: str
    path: str
    bytes: int
    top1: float | None
    top1_drop_points: float | None
    agreement: float
    max_relative_error: float
    zero_fraction: float
    prunable_zero_fraction: float
    bits_per_weight: float
    sparse_runtime: bool | None
    sparse_runtime_reason: str | None
    images: int
    sha256: str
    input_range: tuple[float, float] | None
    layers: tuple[dict[str, Any], ...] = ()
    miou: float | None = None
    miou_drop_points: float | None = None
    not_measured: dict[str, str] = field(default_factory=dict)

    @property
    def drop_points(self) -> float:
        """Percentage points of its metric below the dense float32 torch model."""
        points: float = getattr(self, f"{self.metric}_drop_points")
        return points


@dataclass(frozen=True)
class Training(Scored):
    """How one torch variant came to be.

    Attributes:
        variant: "dense", "block80", "channels".
        top1: of the float32 torch model on the held-out images, 0 to 1; None: see `Row`.
        parameters: number of weights and biases.
        macs: multiply-accumulates for one image.
        seconds: spent training, interruptions left out.
        epochs: one dict an epoch, all of numbers: "epoch", "loss", "top1" or "miou", "learning_rate",
            "sparsity".
        left_dense: why, by name, of each layer that the pattern did not fit.
        miou: of the float32 torch model on the held-out images, 0 to 1; None: see `Row`.
        not_measured: why, of each metric that is None.
        trained_on: the processor or GPU, and how many processes where there were several; "": it was not
            trained here, or by a version that did not write it down.
    """

    variant: str
    top1: float | None
    parameters: int
    macs: int
    seconds: float
    epochs: tuple[dict[str, Any], ...] = ()
    left_dense: dict[str, str] = field(default_factory=dict)
    miou: float | None = None
    not_measured: dict[str, str] = field(default_factory=dict)
    trained_on: str = ""


@dataclass(frozen=True)
class Condition:
    """Accuracy on images made worse in one way.

    Attributes:
        corruption: "noise", "blur", ...
        strength: how much of it.
        unit: what `strength` counts, in words.
        top1: 0 to 1.
    """

    corruption: str
    strength: float
    unit: str
    top1: float


@dataclass(frozen=True)
class ClassTop1:
    """Accuracy on the images of one class.

    Attributes:
        name: of the class.
        images: how many of it were looked at.
        top1: on them as they are, 0 to 1.
        corrupted_top1: on them under every condition, all taken together, 0 to 1.
    """

    name: str
    images: int
    top1: float
    corrupted_top1: float


@dataclass(frozen=True)
class Robustness:
    """What a torch variant does on worse images than it was trained for.

    Attributes:
        images: how many, the same for every variant of a run.
        image_source: which, for people.
        top1: on them as they are, 0 to 1.
        conditions: each corruption at rising strength.
        classes: those that have images among them.
    """

    images: int
    image_source: str
    top1: float
    conditions: tuple[Condition, ...]
    classes: tuple[ClassTop1, ...]


@dataclass(frozen=True)
class Confusion:
    """Images of one class taken for another.

    Attributes:
        label: what they show.
        predicted: what the variant says.
        images: how many.
        dense_images: how many the dense model takes for the same.
        label_images: of that class there are.
        places: of some of them among the held-out images; `thumbnail(place)` in the run folder shows one.
    """

    label: str
    predicted: str
    images: int
    dense_images: int
    label_images: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One held-out image, and what the dense model and a variant say.

    Attributes:
        place: among the held-out images; `thumbnail(place)` in the run folder shows it.
        label: what it shows.
        dense: what the dense model says.
        dense_confidence: its softmax for that, 0 to 1.
        predicted: what the variant says.
        confidence: its softmax for that, 0 to 1.
    """

    place: int
    label: str
    dense: str
    dense_confidence: float
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Examination:
    """What one torch variant gets wrong, beside the dense model on the same held-out images.

    Attributes:
        variant: its name.
        weights_sha256: of its weights in the run folder.
        dense_sha256: of the dense model's.
        images: all held-out images; each is in one of the next three or right in neither model.
        both_right: images that both models get right.
        only_dense_right: images that only the dense model gets right.
        only_variant_right: images that only the variant gets right.
        confusions: the most frequent first.
        samples: where the two differ; where they agree if they hardly differ. None of the dense model.
        robustness: on worse images.
    """

    variant: str
    weights_sha256: str
    dense_sha256: str
    images: int
    both_right: int
    only_dense_right: int
    only_variant_right: int
    confusions: tuple[Confusion, ...]
    samples: tuple[Sample, ...]
    robustness: Robustness


@dataclass(frozen=True)
class ClassIou:
    """One class in the maps of a variant and of the dense model.

    Attributes:
        name: of the class.
        pixels: of it there are in all held-out images.
        dense_iou: of the dense model, intersection over union, 0 to 1; None: it is neither there nor named.
        iou: of the variant, likewise.
    """

    name: str
    pixels: int
    dense_iou: float | None
    iou: float | None


@dataclass(frozen=True)
class MapExamination:
    """The maps of one torch variant, beside those of the dense model of the same held-out images.

    Attributes:
        variant: its name.
        weights_sha256: of its weights in the run folder.
        dense_sha256: of the dense model's.
        images: all held-out images.
        classes: in the order of the classes.
        pictures: of the images on which most pixels differ, in the run folder: the image, what is there, what
            the dense model says, what the variant says. None of the dense model.
    """

    variant: str
    weights_sha256: str
    dense_sha256: str
    images: int
    classes: tuple[ClassIou, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class LayerDrops:
    """One layer of the dense model, pruned alone: its weights, and points lost at each sparsity."""

    name: str
    weights: int
    drops_points: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What `edgeprune sensitivity` left in the run folder.

    Attributes:
        block: (out, in) channels zeroed together.
        images: how many.
        image_source: which, for people.
        top1: of the dense model on them, 0 to 1.
        sparsities: rising, each layer's columns.
        layers: in the order they have in the model.
        left_dense: layers that the block does not fit, and why.
    """

    block: tuple[int, int]
    images: int
    image_source: str
    top1: float
    sparsities: tuple[float, ...]
    layers: tuple[LayerDrops, ...]
    left_dense: dict[str, str]


@dataclass(frozen=True)
class Timing:
    """One file against the clock.

    Attributes:
        path: of the file, relative to the run folder.
        median_ms: of its rounds, in milliseconds.
        quartiles_ms: the lower and the upper, likewise.
        load_memory_bytes: what loading it and running it once adds to a process of LiteRT on the machine that
            timed it; None: not measured.
    """

    path: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    load_memory_bytes: int | None = None


@dataclass(frozen=True)
class Bench:
    """What `edgeprune bench` left in the run folder about the run's files as they are.

    Attributes:
        source: the file in the run folder.
        runtime: name in `converters.runtimes.environments.RUNTIMES`.
        description: of the runtime.
        version: of the runtime.
        emulated: its times say only how files compare.
        processor: of the machine.
        threads: of the runtime.
        rounds: how often each file was timed.
        timings: one a file; those the runtime refuses are left out.
    """

    source: str
    runtime: str
    description: str
    version: str
    emulated: bool
    processor: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Report:
    """Everything a run measured. `to_json(report)` is what `report.json` holds.

    Attributes:
        recipe: the resolved recipe as plain data.
        environment: versions, machine, data: what is needed to repeat the run.
        rows: one a file.
        trainings: one a torch variant, the dense one first.
        examinations: one a torch variant, the dense one first.
        not_examined: why there is none, by variant.
        sensitivity: None: the run folder has none.
        benches: one a runtime or more; empty: nothing was timed.
        maps: of a segmentation, one a torch variant, the dense one first.
    """

    recipe: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    trainings: tuple[Training, ...] = ()
    schema: int = field(default=SCHEMA)
    examinations: tuple[Examination, ...] = ()
    not_examined: dict[str, str] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    benches: tuple[Bench, ...] = ()
    maps: tuple[MapExamination, ...] = ()


def thumbnail(place: int) -> str:
    """Where the run folder keeps a held-out image as a small JPEG.

    >>> thumbnail(12)
    'thumbnails/00012.jpg'
    """
    return f"thumbnails/{place:05d}.jpg"


def to_json(report: Report) -> dict[str, Any]:
    """Return what `report.json` holds: plain dicts and lists, `schema` first, the rest in field order.

    Raises:
        UserError: something JSON cannot hold (NaN, an infinity, an object), each named.
    """
    fields = dataclasses.asdict(report)
    data = {"schema": fields.pop("schema"), **fields}
    problems = [problem for key in data for problem in parsing.not_plain(data[key], key)]
    if problems:
        raise UserError(problems)
    return {key: _lists(value) for key, value in data.items()}


def from_json(data: object) -> Report:
    """Make the `Report` that `to_json` was given.

    Raises:
        UserError: another schema; or every field that is missing, unknown, of another type or out of range.
    """
    if not isinstance(data, dict) or "schema" not in data:
        raise UserError(
            f"not an edgeprune report: it has no field 'schema' (this version reads schema {SCHEMA})"
        )
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        raise UserError(
            f"the report has schema {data['schema']!r}, this version of edgeprune reads schema {SCHEMA}: "
            "make the report again with this version, or read it with the version that wrote it"
        )
    try:
        report = parsing.build(Report, data, "report")
        problems = list(_problems(report))
    except UserError as error:
        problems = list(error.problems)
    if problems:
        raise UserError([*problems, f"(a report of schema {SCHEMA} was expected)"])
    return report


def to_text(report: Report) -> str:
    """The text of `report.json`.

    Raises:
        UserError: see `to_json`.
    """
    return json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(report: Report, folder: Path) -> Path:
    """Write `report.json` into `folder`, whole or not at all, and return its path.

    Raises:
        UserError: it holds something JSON cannot, or `folder` cannot be written to.
    """
    return write_text(folder / FILE_NAME, to_text(report))


def read(folder: Path) -> Report:
    """Read `report.json` of a run folder.

    Raises:
        UserError: it is not there, is not JSON, or is not a report of this schema; see `from_json`.
    """
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): name the folder of a finished run, it holds {FILE_NAME}"
        ) from error
    except ValueError as error:  # not UTF-8, not JSON, or NaN in it
        raise UserError(f"{path} is not JSON: {error}") from error
    try:
        return from_json(data)
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from error


FRACTIONS = (
    "top1", "miou", "iou", "dense_iou", "agreement",
    "zero_fraction", "prunable_zero_fraction", "corrupted_top1", "confidence",
    "dense_confidence",
)  # fmt: skip
NOT_NEGATIVE = (
    "bits_per_weight", "max_relative_error", "parameters", "macs", "seconds", "place", "pixels", "both_right",
    "only_dense_right", "only_variant_right", "dense_images", "median_ms",
    "load_memory_bytes",
)  # fmt: skip
POSITIVE = ("bytes", "images", "label_images", "rounds", "threads", "weights")


def _problems(report: Report) -> Iterator[str]:
    """Values of the right type that cannot be true."""
    from converters.facts import LayerFacts

    records = _parts("rows", report.rows)
    for where, scored in [*records, *_parts("trainings", report.trainings)]:
        yield from _score_problems(where, scored)
    for where, row in records:
        if row.sparse_runtime is None and not row.sparse_runtime_reason:
            yield f"{where}.sparse_runtime is null without a sparse_runtime_reason"
        for index, layer in enumerate(row.layers):
            try:
                parsing.build(LayerFacts, layer, f"{where}.layers[{index}]")
            except UserError as error:
                yield from error.problems
    for place, training in enumerate(report.trainings):
        for index, epoch in enumerate(training.epochs):
            for name, value in epoch.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    yield f"report.trainings[{place}].epochs[{index}].{name} must be a number, not {value!r}"
    records += _parts("trainings", report.trainings)
    for where, examination in _parts("examinations", report.examinations):
        records += [(where, examination), (f"{where}.robustness", examination.robustness)]
        records += _parts("confusions", examination.confusions, where)
        records += _parts("samples", examination.samples, where)
        records += _parts("robustness.conditions", examination.robustness.conditions, where)
        records += _parts("robustness.classes", examination.robustness.classes, where)
    for where, found in _parts("maps", report.maps):
        records += [(where, found), *_parts("classes", found.classes, where)]
    for where, bench in _parts("benches", report.benches):
        records += [(where, bench), *_parts("timings", bench.timings, where)]
    if report.sensitivity is not None:
        yield from _sensitivity_problems(report.sensitivity)
        records.append(("report.sensitivity", report.sensitivity))
    for where, record in records:
        values = vars(record)
        for name in FRACTIONS:
            if values.get(name) is not None and not 0 <= values[name] <= 1:
                yield f"{where}.{name} is {values[name]}, a fraction is from 0 to 1"
        for name in NOT_NEGATIVE:
            if values.get(name) is not None and values[name] < 0:
                yield f"{where}.{name} is {values[name]}, it cannot be below 0"
        for name in POSITIVE:
            if name in values and values[name] <= 0:
                yield f"{where}.{name} is {values[name]}, it must be above 0"


def _score_problems(where: str, record: Row | Training) -> Iterator[str]:
    """A record has one metric, with what it lost where it is a file's, and says why it has not the other."""
    measured = [name for name in METRICS if getattr(record, name) is not None]
    if len(measured) != 1:
        yield f"{where} has {' and '.join(measured) or 'no score'}: it must have one of {', '.join(METRICS)}"
        return
    if record.top1 is None and not record.not_measured.get("top1"):
        yield f"{where}.top1 is null, and not_measured does not say why"
    for name in METRICS if isinstance(record, Row) else ():
        if (getattr(record, f"{name}_drop_points") is None) != (name != record.metric):
            yield f"{where}.{name}_drop_points does not go with its {name}"


def _parts(name: str, parts: Sequence[Any], above: str = "report") -> list[tuple[str, Any]]:
    """Each part with the place it has in the report."""
    return [(f"{above}.{name}[{index}]", part) for index, part in enumerate(parts)]


def _sensitivity_problems(sensitivity: Sensitivity) -> Iterator[str]:
    expected = len(sensitivity.sparsities)
    for where, layer in _parts("sensitivity.layers", sensitivity.layers):
        if len(layer.drops_points) != expected:
            yield f"{where}.drops_points has {len(layer.drops_points)} values for {expected} sparsities"


def _lists(data: Any) -> Any:
    """`data` with each tuple as a list, as JSON reads it back."""
    if isinstance(data, dict):
        return {key: _lists(value) for key, value in data.items()}
    return [_lists(value) for value in data] if isinstance(data, (list, tuple)) else data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number JSON knows")
