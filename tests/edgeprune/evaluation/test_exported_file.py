import pytest
import torch

from edgeprune.errors import ToolError
from edgeprune.evaluation.exported_file import by_class, differences
from edgeprune.report import records
from edgeprune.report.formatting import points_with_error
from edgeprune.tasks import TASKS

CLASSIFICATION = TASKS["classification"]


def test_what_a_file_calls_a_class_is_what_counts():
    outputs = torch.tensor([[1.0, 2.0, 3.0]])
    assert by_class(CLASSIFICATION, outputs, ("ant", "bee", "cat"), ("ant", "bee", "cat")).tolist() == [
        [1, 2, 3]
    ]
    assert by_class(CLASSIFICATION, outputs, ("bee", "cat", "ant"), ("ant", "bee", "cat")).tolist() == [
        [3, 1, 2]
    ]
    assert by_class(CLASSIFICATION, outputs, None, ("ant", "bee", "cat")) is outputs
    with pytest.raises(ToolError, match="the file names its classes ant, bee, dog; expected ant, bee, cat"):
        by_class(CLASSIFICATION, outputs, ("ant", "bee", "dog"), ("ant", "bee", "cat"))


def test_images_on_which_file_and_dense_model_differ_are_counted():
    labels = torch.tensor([0, 1, 1, 0, 1])
    dense = torch.eye(2)[torch.tensor([0, 1, 1, 1, 0])]
    own = torch.eye(2)[torch.tensor([0, 0, 1, 0, 0])]
    assert differences(CLASSIFICATION, dense, own, labels) == (1, 1)
    assert differences(CLASSIFICATION, dense, dense, labels) == (0, 0)
    assert differences(TASKS["segmentation"], dense, own, labels) == (None, None)


def test_the_counts_of_a_run_are_its_points_lost(finished_run):
    rows = records.read(finished_run).rows
    assert any(row.lost_images or row.gained_images for row in rows)
    for row in rows:
        assert 100 * (row.lost_images - row.gained_images) / row.images == pytest.approx(row.drop_points)
    page = (finished_run / "report.md").read_text()
    told = next(row for row in rows if row.lost_images)
    assert f"| {points_with_error(told.drop_points, told.standard_error_points)} |" in page
    assert "behind ± their standard error" in page
