"""Our evaluation of a package against Core ML itself, and the public names of the package."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from converters import coreml
from converters.facts import Converted


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
@pytest.mark.parametrize("package", ["tiny_sparse", "tiny_int8", "tiny_app"])
def test_evaluation_agrees_with_core_ml(package: str, request: pytest.FixtureRequest, tools: Any) -> None:
    converted: Converted = request.getfixturevalue(package)
    images = tools.pixels(8, 16) if package == "tiny_app" else tools.images(8, 16)
    native = coreml.load(converted.path, native=True).predict(images)
    ours = coreml.load(converted.path, native=False).predict(images)
    assert tools.relative_error(ours, native) <= 2e-3
    assert np.array_equal(ours.argmax(1), native.argmax(1))


@pytest.mark.skipif(sys.platform == "darwin", reason="here Core ML is missing on purpose")
def test_core_ml_where_there_is_none_is_said(tiny_sparse: Converted) -> None:
    from converters.errors import UserError

    with pytest.raises(UserError, match="Core ML itself runs on macOS only"):
        coreml.load(tiny_sparse.path, native=True)


def test_public_names() -> None:
    assert coreml.__all__ == [
        "Inspection",
        "ObjectDetector",
        "Package",
        "StoredWeight",
        "convert",
        "convert_all",
        "decode",
        "inspect",
        "load",
        "read_object_detector",
        "write_object_detector",
    ]
    assert all(hasattr(coreml, name) for name in coreml.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = coreml.nonsense


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys; from converters import coreml; print({'torch', 'coremltools'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"set()\n"
    )
