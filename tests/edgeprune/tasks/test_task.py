"""Scores against an example worked out by hand."""

import pytest
import torch

from edgeprune.data.labels import IGNORED, LabelKind
from edgeprune.evaluation.records import from_plain, to_plain
from edgeprune.tasks import TASKS, confusion, metric
from edgeprune.tasks.task import score, scored
from tests.support.reports import make_row

# One map of 2x4 pixels; class 3 is neither there nor named.
LABELS = torch.tensor([[[0, 0, 1, 1], [0, IGNORED, 1, 2]]], dtype=torch.int16)
PREDICTED = torch.tensor([[[0, 1, 1, 1], [0, 2, 0, 2]]])
# Of class 0: 2 hits, 3 there, 3 named: 2 of 4 pixels. Class 1: 2 hits of 4. Class 2: 1 of 1.
IOUS = (2 / 4, 2 / 4, 1.0)
CLASSIFICATION, SEGMENTATION = TASKS["classification"], TASKS["segmentation"]


def outputs(predicted, classes):
    """What a model gives that names these classes: (n, ...) -> (n, classes, ...)."""
    return torch.nn.functional.one_hot(predicted, classes).movedim(-1, 1).float()


def test_mean_iou_is_that_of_the_example():
    counts = confusion.confusion(PREDICTED, LABELS, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert confusion.ious(counts).tolist()[:3] == list(IOUS)
    assert confusion.ious(counts)[3].isnan()
    assert score(SEGMENTATION, outputs(PREDICTED, 4), LABELS) == pytest.approx(sum(IOUS) / 3)


def test_a_class_that_is_named_and_not_there_counts_as_0():
    predicted = torch.where(PREDICTED == 2, 3, PREDICTED)
    assert score(SEGMENTATION, outputs(predicted, 4), LABELS) == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)


def test_top1_is_the_share_that_is_right():
    labels, named = torch.tensor([0, 1, 2, 2, 1, 0, 0]), torch.tensor([0, 1, 2, 1, 1, 0, 2])
    assert score(CLASSIFICATION, outputs(named, 3), labels) == 5 / 7


def test_top5_is_told_of_many_classes():
    """Ten images of class 7 whose right class is at each place from the first to the tenth."""
    given = torch.zeros(10, 20)
    for place in range(10):
        given[place, 8 : 8 + place] = 2.0  # So many classes come before it.
        given[place, 7] = 1.0
    labels = torch.full((10,), 7)
    assert scored(CLASSIFICATION, given, labels, 20) == (0.1, {"top5": 0.5})
    assert scored(CLASSIFICATION, given[:, :19], labels, 19) == (0.1, {})


@pytest.mark.parametrize("task", [CLASSIFICATION, SEGMENTATION], ids=["classification", "segmentation"])
def test_parts_of_several_processes_score_as_the_whole(task):
    """The mean of the parts' scores would be another number."""
    maps = torch.randint(0, 3, (9, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = maps.roll(1, 2) if task is SEGMENTATION else maps[:, 0, 0].roll(1)
    given = outputs(maps if task is SEGMENTATION else maps[:, 0, 0], 3)
    evaluators = [task.evaluator(3) for _ in range(2)]
    for evaluator, part in zip(evaluators, (slice(0, 2), slice(2, 9)), strict=True):
        evaluator.update(given[part], labels[part])
    evaluators[0].merge([evaluator.state() for evaluator in evaluators])
    assert evaluators[0].score() == score(task, given, labels, 3)


def test_top5_of_several_processes_is_that_of_all_their_images():
    given = torch.rand(9, 30, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9)
    evaluators = [CLASSIFICATION.evaluator(30) for _ in range(2)]
    for evaluator, part in zip(evaluators, (slice(0, 2), slice(2, 9)), strict=True):
        evaluator.update(given[part], labels[part])
    evaluators[0].merge([evaluator.state() for evaluator in evaluators])
    assert evaluators[0].details() == scored(CLASSIFICATION, given, labels, 30)[1]


@pytest.mark.parametrize(("kind", "task"), [(LabelKind.CLASS, CLASSIFICATION), (LabelKind.MAP, SEGMENTATION)])
def test_a_task_says_its_labels(kind, task):
    assert task.labels is kind


def test_what_a_row_is_not_measured_by_is_null_and_says_why():
    missing = dict(SEGMENTATION.metric.instead_of)
    row = make_row(metric="miou", score=0.6, drop_points=15.0, not_measured=missing)
    fields = to_plain(row)
    assert (fields["miou"], fields["miou_drop_points"]) == (0.6, 15.0)
    assert (fields["top1"], fields["top1_drop_points"]) == (None, None)
    assert "each pixel" in fields["not_measured"]["top1"]
    assert from_plain(type(row), fields, "row") == row
    assert to_plain(make_row(score=0.6))["miou"] is None


def test_a_metric_that_no_task_has_is_called_by_its_key():
    assert metric("miou").heading == "mean IoU"
    assert (metric("map50").heading, metric("map50").word) == ("map50", "map50")
