"""What was measured, as records: of a file, of a trained variant, of what it gets wrong. No torch is needed.

In JSON a record has its score under the metric's own key, with "_drop_points" behind it for the points lost,
and null for "top1" and "miou" where it is measured by another. Only `to_plain` and `from_plain` know that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from edgeprune import parsing
from edgeprune.errors import UserError
from edgeprune.evaluation import paired

R = TypeVar("R", "Row", "Training")

ALWAYS = ("top1", "miou")
"""The metrics that every record has a place for in JSON, null where it is measured by another."""
DROP = "_drop_points"


@dataclass(frozen=True)
class Row:
    """One variant on one target: one file, measured from disk.

    Attributes:
        variant: what was done to the weights: "dense", "block80", "channels".
        target: name in `converters.targets.TARGETS`.
        path: of the file, relative to the run folder.
        bytes: size on disk.
        metric: key of what the model is measured by, of `edgeprune.tasks.metrics`.
        score: of the file on the held-out images by that metric, 0 to 1.
        drop_points: percentage points below the dense float32 torch model on the same images.
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
        not_measured: of metrics that the model is not measured by, why.
        details: further numbers that the task measures on the file, by name.
        download_bytes: the file deflated, as a store sends it; None: by a version that did not measure it.
        lost_images: how many images only the dense float32 torch model has right; None: by a version that did
            not count them, or an image is not right or wrong as a whole.
        gained_images: how many images only the file has right; None likewise.
    """

    variant: str
    target: str
    path: str
    bytes: int
    metric: str
    score: float
    drop_points: float
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
    not_measured: dict[str, str] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    download_bytes: int | None = None
    lost_images: int | None = None
    gained_images: int | None = None

    @property
    def standard_error_points(self) -> float | None:
        """Of `drop_points`, from the images on which the file and the dense model differ; None: unknown."""
        if self.lost_images is None or self.gained_images is None:
            return None
        return paired.points_lost(self.lost_images, self.gained_images, self.images)[1]


@dataclass(frozen=True)
class Training:
    """How one torch variant came to be.

    Attributes:
        variant: "dense", "block80", "channels".
        metric: see `Row`.
        score: of the float32 torch model on the held-out images, 0 to 1.
        parameters: number of weights and biases.
        macs: multiply-accumulates for one image.
        seconds: spent training, interruptions left out.
        epochs: one dict an epoch, all of numbers: "epoch", "loss", the metric's key, "learning_rate",
            "sparsity".
        left_dense: why, by name, of each layer that the pattern did not fit.
        not_measured: see `Row`.
        trained_on: the processor or GPU, and how many processes where there were several; "": it was not
            trained here, or by a version that did not write it down.
        details: see `Row`.
    """

    variant: str
    metric: str
    score: float
    parameters: int
    macs: int
    seconds: float
    epochs: tuple[dict[str, Any], ...] = ()
    left_dense: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    trained_on: str = ""
    details: dict[str, float] = field(default_factory=dict)


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
    """Accuracy of a torch variant on corrupted images.

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
        robustness: on corrupted images.
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


def thumbnail(place: int) -> str:
    """Where the run folder keeps a held-out image as a small JPEG.

    >>> thumbnail(12)
    'thumbnails/00012.jpg'
    """
    return f"thumbnails/{place:05d}.jpg"


def to_plain(record: Row | Training) -> dict[str, Any]:
    """A row or training as plain data for JSON."""
    plain: dict[str, Any] = {}
    for name, value in dataclasses.asdict(record).items():
        if name == "metric":
            plain |= _score_fields(record, ALWAYS[:1])
        elif name == "not_measured":
            others = [*ALWAYS[1:], *([] if record.metric in ALWAYS else [record.metric])]
            plain |= _score_fields(record, others)
        if name not in ("metric", "score", "drop_points"):
            plain[name] = value
    return plain


def from_plain(cls: type[R], data: object, where: str) -> R:
    """What `to_plain` was given.

    Args:
        cls: `Row` or `Training`.
        data: plain data.
        where: what it is, for messages.

    Raises:
        UserError: every field that is missing, unknown or of another type; no score, or several.
    """
    if not isinstance(data, Mapping):
        return parsing.build(cls, data, where)
    own = {entry.name for entry in dataclasses.fields(cls)} - {"metric", "score", "drop_points"}
    scored = {key: value for key, value in data.items() if _is_score(cls, key, data) and key not in own}
    problems = list(_score_problems(cls, scored, data, where))
    if problems:
        raise UserError(problems)
    (metric,) = (key for key, value in scored.items() if value is not None)
    known: dict[str, Any] = {"metric": metric, "score": scored[metric]}
    if cls is Row:
        known["drop_points"] = data.get(f"{metric}{DROP}")
    named = {key for name in scored for key in (name, f"{name}{DROP}")}
    rest = {key: value for key, value in data.items() if key not in named}
    try:
        return parsing.build(cls, rest | known, where)
    except UserError as error:
        names = ((f"{where}.score", f"{where}.{metric}"), (f"{where}.drop_points", f"{where}.{metric}{DROP}"))
        told = error.problems
        for inside, outside in names:
            told = tuple(problem.replace(inside, outside) for problem in told)
        raise UserError(told) from None


def _score_fields(record: Row | Training, metrics: Iterable[str]) -> dict[str, Any]:
    """The fields of a record in JSON for these metrics: its own score, and null for what it has not."""
    fields: dict[str, Any] = {}
    for metric in metrics:
        own = metric == record.metric
        fields[metric] = record.score if own else None
        if isinstance(record, Row):
            fields[f"{metric}{DROP}"] = record.drop_points if own else None
    return fields


def _is_score(cls: type[Row] | type[Training], key: str, data: Mapping[str, Any]) -> bool:
    """Whether a field of JSON holds a score."""
    if key in ALWAYS:
        return True
    if cls is Row:
        return f"{key}{DROP}" in data
    return isinstance(data[key], (int, float)) and not isinstance(data[key], bool)


def _score_problems(
    cls: type[Row] | type[Training], scored: Mapping[str, Any], data: Mapping[str, Any], where: str
) -> Iterator[str]:
    """A record has one metric, with what it lost where it is a file's, and says why it has not the other."""
    measured = [key for key, value in scored.items() if value is not None]
    if len(measured) != 1:
        yield (
            f"{where} has {' and '.join(measured) or 'no score'}: it must have one of "
            f"{', '.join(dict.fromkeys((*ALWAYS, *scored)))}"
        )
        return
    reasons = data.get("not_measured")
    if "top1" not in measured and not (isinstance(reasons, Mapping) and reasons.get("top1")):
        yield f"{where}.top1 is null, and not_measured does not say why"
    for key in scored if cls is Row else ():
        if (data.get(f"{key}{DROP}") is None) != (key not in measured):
            yield f"{where}.{key}{DROP} does not go with its {key}"
