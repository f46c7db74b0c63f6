"""Networks with known zeros, converted once for all tests: a conversion takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import MobileNetV3, mobilenet_v3_small

from converters import coreml
from converters.errors import UserError
from converters.facts import Converted
from converters.targets import TARGETS
from tests.support.packages import (
    LABELS,
    NORMALIZATION,
    Tiny,
    blob,
    edited,
    images,
    normalized,
    operation_of,
    pixels,
    prepare,
    prunable,
    relative_error,
    run,
    twin,
)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    torch.manual_seed(0)
    return prepare(Tiny())


@pytest.fixture(scope="session")
def v3_small() -> MobileNetV3:
    torch.manual_seed(0)
    return prepare(mobilenet_v3_small(weights=None, num_classes=10))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


COREML_TARGETS = [name for name, target in TARGETS.items() if target.format == "coreml"]


@pytest.fixture(scope="session")
def tiny_files(tiny: Tiny, folder: Path) -> dict[str, Converted]:
    """For every target; takes what the torch model takes."""
    paths = {target: folder / f"tiny-{target}.mlpackage" for target in COREML_TARGETS}
    return coreml.convert_all(tiny, torch.rand(1, 3, 16, 16), paths)


@pytest.fixture(scope="session")
def tiny_sparse(tiny_files: dict[str, Converted]) -> Converted:
    """iOS 16, sparse float16."""
    return tiny_files["coreml-ios16"]


@pytest.fixture(scope="session")
def tiny_int8(tiny_files: dict[str, Converted]) -> Converted:
    """iOS 18, sparse int8."""
    return tiny_files["coreml-ios18-int8"]


@pytest.fixture(scope="session")
def tiny_app(tiny: Tiny, folder: Path) -> Converted:
    """iOS 16, sparse float16, as an app wants it: pixels in, class names out."""
    return coreml.convert(
        tiny,
        torch.rand(1, 3, 16, 16),
        folder / "tiny-app.mlpackage",
        labels=LABELS,
        normalization=NORMALIZATION,
        metadata={"author": "A. Author", "license": "Apache-2.0", "version": "1.2", "data": "digits"},
    )


@pytest.fixture(scope="session")
def small_sparse(v3_small: nn.Module, folder: Path) -> Converted:
    return coreml.convert(v3_small, torch.rand(1, 3, 64, 64), folder / "small.mlpackage")


@pytest.fixture(scope="session")
def tools() -> Any:
    """The functions above, for the tests."""

    class Tools:
        LABELS = LABELS
        NORMALIZATION = NORMALIZATION

    for function in (
        run,
        normalized,
        relative_error,
        images,
        pixels,
        twin,
        edited,
        blob,
        operation_of,
        prepare,
        prunable,
    ):
        setattr(Tools, function.__name__, staticmethod(function))
    Tools.UserError = UserError
    return Tools
