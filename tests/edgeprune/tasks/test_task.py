"""Scores against an example worked out by hand."""

import pytest
import torch

from edgeprune.tasks import task as tasks
from edgeprune.tasks.task import CLASSIFICATION, IGNORED, SEGMENTATION, task_of

# One map of 2x4 pixels; class 3 is neither there nor named.
LABELS = torch.tensor([[[0, 0, 1, 1], [0, IGNORED, 1, 2]]], dtype=torch.int16)
PREDICTED = torch.tensor([[[0, 1, 1, 1], [0, 2, 0, 2]]])
# Of class 0: 2 hits, 3 there, 3 named: 2 of 4 pixels. Class 1: 2 hits of 4. Class 2: 1 of 1.
IOUS = (2 / 4, 2 / 4, 1.0)


def outputs(predicted, classes):
    """What a model gives that names these classes: (n, ...) -> (n, classes, ...)."""
    return torch.nn.functional.one_hot(predicted, classes).movedim(-1, 1).float()


def test_mean_iou_is_that_of_the_example():
    counts = tasks.confusion(PREDICTED, LABELS, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert tasks.ious(counts).tolist()[:3] == list(IOUS)
    assert tasks.ious(counts)[3].isnan()
    assert SEGMENTATION.score(outputs(PREDICTED, 4), LABELS) == pytest.approx(sum(IOUS) / 3)


def test_a_class_that_is_named_and_not_there_counts_as_0():
    predicted = torch.where(PREDICTED == 2, 3, PREDICTED)
    assert SEGMENTATION.score(outputs(predicted, 4), LABELS) == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)


def test_top1_is_the_share_that_is_right():
    labels, named = torch.tensor([0, 1, 2, 2, 1, 0, 0]), torch.tensor([0, 1, 2, 1, 1, 0, 2])
    assert CLASSIFICATION.score(outputs(named, 3), labels) == 5 / 7


@pytest.mark.parametrize(("shape", "task"), [((4,), CLASSIFICATION), ((4, 2, 2), SEGMENTATION)])
def test_labels_say_the_task(shape, task):
    assert task_of(torch.zeros(shape)) is task


def test_what_a_row_is_not_measured_by_is_null_and_says_why():
    fields = SEGMENTATION.row_fields(0.6, 0.75)
    assert fields["miou_drop_points"] == pytest.approx(15)
    assert (fields["miou"], fields["top1"], fields["top1_drop_points"]) == (0.6, None, None)
    assert "each pixel" in fields["not_measured"]["top1"]
    assert CLASSIFICATION.row_fields(0.6, 0.75)["miou"] is None
