"""Two files of one model beside each other: alike where both are right, else where they part."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import coreml, litert
from converters.errors import UserError
from converters.side_by_side import SideBySide, side_by_side
from tests.support.packages import NORMALIZATION, Tiny, pixels, prepare

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    torch.manual_seed(0)
    return prepare(Tiny(), zeros=0.5)


def written(model: Tiny, folder: Path, suffix: str) -> Path:
    """A float16 package, or a float32 `.tflite` file."""
    path = folder / f"model{suffix}"
    convert, target = (
        (coreml.convert, "coreml-ios16") if suffix == ".mlpackage" else (litert.convert, "litert-arm64")
    )
    return convert(model, EXAMPLE, path, target=target, normalization=NORMALIZATION).path


@pytest.fixture(scope="module")
def files(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    return written(tiny, folder, ".mlpackage"), written(tiny, folder, ".tflite")


def compared(files: tuple[Path, Path], model: Tiny) -> SideBySide:
    return side_by_side(files, pixels(4, 32), model, NORMALIZATION)


def test_two_right_files_are_alike_at_every_step(files, tiny):
    found = compared(files, tiny)
    assert found.apart is not None
    assert found.apart < 2e-3
    assert found.same_class == 1
    assert found.parting is None
    assert len(found.steps) >= 8  # every layer, or what was made from it
    assert all(step.apart < 5e-3 for step in found.steps)
    # Each is compared with itself too: nothing is apart.
    alone = compared((files[0], files[0]), tiny)
    assert (alone.apart, max(step.apart for step in alone.steps)) == (0, 0)


def test_the_step_where_one_file_is_wrong_is_named(files, tiny, tmp_path):
    faulty = copy.deepcopy(tiny)
    with torch.no_grad():
        faulty.project[0].weight[::2] *= -3
    found = compared((files[0], written(faulty, tmp_path, ".tflite")), tiny)
    assert found.parting is not None
    assert found.parting.place.startswith("project")
    assert found.parting.errors[0] < 5e-3 < found.parting.errors[1]
    place = found.steps.index(found.parting)
    assert all(step.apart < 5e-3 for step in found.steps[:place])


def test_files_of_two_models_are_refused(files, tiny, tmp_path):
    other = copy.deepcopy(tiny)
    other.classifier[2] = torch.nn.Linear(64, 7)
    with pytest.raises(UserError, match="gives 7 values"):
        compared((files[0], written(other.eval(), tmp_path, ".tflite")), tiny)
    with pytest.raises(UserError, match="takes images of"):
        side_by_side(files, np.zeros((1, 3, 40, 40), np.float32), tiny, NORMALIZATION)
