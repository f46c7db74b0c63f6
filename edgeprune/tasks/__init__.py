"""What a model answers: a file for each task, and the table of them."""

from __future__ import annotations

from edgeprune.tasks.classification import Classification
from edgeprune.tasks.detection import Detection
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.task import Metric, Task, metric_of

DEFAULT = Classification.name

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Segmentation(), Detection())}
"""Every task by its name in recipes."""


def metrics() -> tuple[Metric, ...]:
    """The metrics of all tasks."""
    return tuple(task.metric for task in TASKS.values())


def metric(key: str) -> Metric:
    """The metric of this key, for people; one that no task here has is called by its key."""
    return metric_of(metrics(), key)
