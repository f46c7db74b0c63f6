import pytest
import torch

from edgeprune.errors import ToolError
from edgeprune.evaluation.exported_file import by_class
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
