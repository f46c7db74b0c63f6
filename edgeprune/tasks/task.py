"""What a task is: what a model answers, how that is trained, scored and looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from converters.facts import Normalization
    from edgeprune.data.dataset import Data
    from edgeprune.data.labels import LabelKind
    from edgeprune.models.architecture import Architecture
    from edgeprune.training.config import Augment


@dataclass(frozen=True)
class Metric:
    """How good answers are: 0 to 1, higher is better.

    Attributes:
        key: its name in JSON and in budgets, where "_drop_points" follows.
        heading: for people, over a column.
        word: for people, in a sentence: "points of ... lost".
        instead_of: of metrics that such answers do not have, why: what the report says where they are null.
        details: headings of further numbers of the same outputs, 0 to 1, by their names in JSON.
        hub: its name on the Hugging Face hub, where that is another.
    """

    key: str
    heading: str
    word: str
    instead_of: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None


class Evaluator(Protocol):
    """Collects answers batch by batch, in one process or several, and scores them."""

    def update(self, outputs: Tensor, labels: Any) -> None:
        """Take in the outputs of a model for some images, and their labels."""
        ...

    def state(self) -> Any:
        """What was taken in, in a form that can be sent to another process."""
        ...

    def merge(self, states: Iterable[Any]) -> None:
        """Hold what several processes have taken in, this one's own `state` among them."""
        ...

    def score(self) -> float:
        """The metric over everything taken in, 0 to 1."""
        ...

    def details(self) -> dict[str, float]:
        """Further numbers over everything taken in, by their names in JSON; none for most metrics."""
        ...


@dataclass(frozen=True)
class Move:
    """A change of where things are in a batch of images; see `edgeprune.training.augment`.

    Attributes:
        images: moves pixels (n, 3, h, w) uint8.
        maps: moves classes of pixels (n, h, w): what is between two pixels is the nearer one.
        points: moves (n, k, 2), x and y in pixels from the top left corner, float32.
        size_px: side of the images afterwards; None: as before.
    """

    images: Callable[[Tensor], Tensor]
    maps: Callable[[Tensor], Tensor]
    points: Callable[[Tensor], Tensor]
    size_px: int | None = None


@dataclass(frozen=True)
class Analysis:
    """What a variant gets wrong.

    Attributes:
        record: of the task's `Section.record`.
        pictures: JPEG files to keep in the run folder, by their paths in it.
    """

    record: Any
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """What a task adds to the report.

    Attributes:
        key: the list in `report.json` that holds a record for each variant.
        record: its dataclass, with `variant`, `weights_sha256` and `dense_sha256` among its fields.
        template: name of the templates NAME.html.jinja and NAME.md.jinja in `edgeprune/tasks/templates`;
            "" where the pages say nothing of it.
        left_out: why what other tasks' sections show is not shown; "" where nothing is left out.
    """

    key: str
    record: type[Any]
    template: str = ""
    left_out: str = ""


class Task(Protocol):
    """A kind of answer. Outputs are what a torch model gives for n images, float32, n first.

    Attributes:
        name: as recipes have it.
        metric: what it is measured by.
        labels: what a source of images must have for it.
        whole_image: whether images are squeezed rather than cropped unless a recipe says otherwise.
        section: what it adds to the report.
        hub: its name on the Hugging Face hub, "image-classification".
    """

    name: str
    hub: str
    metric: Metric
    labels: LabelKind
    whole_image: bool
    section: Section

    def takes_model(self, name: str) -> bool:
        """Whether a model of this name, as `edgeprune.models.build` knows it, answers so."""
        ...

    def bound(self, architecture: Architecture) -> Task:
        """The task for the outputs of one model; itself where outputs say all there is to know."""
        ...

    def problems(self, augment: Augment) -> list[str]:
        """Validation errors of settings that this task cannot use, one message each."""
        ...

    def loss(self, outputs: Tensor, labels: Any, label_smoothing: float) -> Tensor:
        """Mean loss of a batch against its labels."""
        ...

    def distillation(self, outputs: Tensor, taught: Tensor) -> Tensor:
        """Mean distance of a batch's outputs from those of the teacher."""
        ...

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """How far a model's answers have moved from another's, 0 or more: a unit that tells changes apart."""
        ...

    def transform_labels(self, labels: Any, move: Move) -> Any:
        """The labels of a batch whose images are moved."""
        ...

    def evaluator(self, classes: int) -> Evaluator:
        """A new evaluator for this many classes."""
        ...

    def reordered(self, outputs: Tensor, places: Sequence[int]) -> Tensor:
        """Outputs with their classes in another order: first the one that is at `places[0]`, and so on."""
        ...

    def metadata(self) -> dict[str, str]:
        """What a file says of its outputs besides the names of the classes, by key."""
        ...

    def agreement(self, outputs: Tensor, others: Tensor) -> float:
        """Share of answers that two models have in common, 0 to 1."""
        ...

    def right(self, outputs: Tensor, labels: Any) -> Tensor | None:
        """Whether each image is right, (n,) bool, where the metric is the share of those; None where not."""
        ...

    def analysis_steps(self) -> int:
        """How often `analyse` calls `advance`."""
        ...

    def analyse(
        self, variant: Analysed, dense: Analysed, data: Data, advance: Callable[[int], None]
    ) -> Analysis:
        """Look at what a variant gets wrong on the held-out images, beside the dense model."""
        ...


@dataclass(frozen=True)
class Analysed:
    """A trained variant to look at.

    Attributes:
        name: of the variant; "dense" for the baseline.
        module: in eval mode.
        outputs: of it for the held-out images.
        weights_sha256: of its weights in the run folder.
        normalization: what the module takes.
    """

    name: str
    module: nn.Module
    outputs: Tensor
    weights_sha256: str
    normalization: Normalization


def scored(task: Task, outputs: Tensor, labels: Any, classes: int) -> tuple[float, dict[str, float]]:
    """The metric of outputs for images with these labels, 0 to 1, and whatever else is told of them."""
    evaluator = task.evaluator(classes)
    evaluator.update(outputs, labels)
    return evaluator.score(), evaluator.details()


def score(task: Task, outputs: Tensor, labels: Any, classes: int | None = None) -> float:
    """The metric of outputs for images with these labels, 0 to 1.

    Args:
        task: whose metric.
        outputs: of a model.
        labels: of the same images.
        classes: how many there are; None: as many as the outputs have values (n, classes, ...).
    """
    evaluator = task.evaluator(outputs.shape[1] if classes is None else classes)
    evaluator.update(outputs, labels)
    return evaluator.score()


def metric_of(metrics: Sequence[Metric], key: str) -> Metric:
    """The metric of this key; one that no task here has is called by its key."""
    return next((metric for metric in metrics if metric.key == key), Metric(key, key, key))
