"""Keras models, and what is checked of them without TensorFlow."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import verify
from converters.litert import keras_models
from converters.litert.graph import read_file

ROOT = Path(__file__).parents[3]
CHILD = Path(__file__).with_name("keras_child.py")
SIZE_PX = {"MobileNetV3Small": 64, "MobileNetV2": 64, "small": 32}


def told(name: str, size_px: int, folder: Path) -> dict[str, Any]:
    """What the child tells of a model."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is an extra: make test-tensorflow")
    done = subprocess.run(
        [sys.executable, str(CHILD), name, str(size_px), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    content: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return content


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """Folder of a model's files, and what the child tells; each model is converted once."""

    @functools.cache
    def convert(name: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(name)
        return folder, told(name, SIZE_PX[name], folder)

    return convert


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", SIZE_PX)
def test_a_keras_model_goes_down_the_same_road(name, converted):
    _, found = converted(name)
    exact, rounded = (found["files"][target] for target in ("litert-arm64", "litert-arm64-int8"))
    assert exact["error"] < 1e-4
    assert rounded["error"] < 0.05
    assert rounded["bytes"] < 0.7 * exact["bytes"]
    for file in (exact, rounded):
        graph = read_file(file["path"])
        kinds = [graph.op_name(op) for op in graph.ops]
        # A weight of 512 int8 values is smaller with its zeros than with indices.
        assert kinds.count("DENSIFY") >= (2 if file is exact else 1)
        # One image is all that it is for: nothing in it computes shapes.
        assert not {"SHAPE", "PACK", "STRIDED_SLICE"} & set(kinds)
        assert file["range"] == [0, 255]
        assert (file["sparse"], file["problems"]) == (True, [])
        names = {layer.rpartition("/")[2]: zeros for layer, _, zeros in file["layers"]}
        assert names.keys() == file["own_zeros"].keys()
        # int8 makes some more of them zero.
        assert all(zeros >= file["own_zeros"][layer] for layer, zeros in names.items())
    assert {name: zeros for name, _, zeros in exact["layers"] if zeros > 0.5} == pytest.approx(
        {
            name: exact["own_zeros"][name.rpartition("/")[2]]
            for name, _, zeros in exact["layers"]
            if zeros > 0.5
        }
    )


@pytest.mark.tensorflow
def test_tensorflows_interpreter_gives_the_same(converted):
    folder, _ = converted("MobileNetV3Small")
    pixels = np.random.default_rng(1).uniform(0, 255, (4, 3, 64, 64)).astype(np.float32)
    result = verify.verify(folder / "litert-arm64.tflite", pixels, runtimes=["tensorflow"])
    host, tensorflow = result.checks
    assert host.agrees is None
    assert tensorflow.agrees
    assert tensorflow.max_relative_error < 1e-4


@pytest.mark.tensorflow
def test_metadata_says_what_rescaling_does(converted):
    from converters.litert.metadata import read

    folder, found = converted("MobileNetV3Small")
    messages = found["refused"]
    content = read(read_file(folder / "litert-arm64.tflite"))["input"]
    assert content == {"shape": [3, 64, 64], "range": [0, 255], "mean": [0.5] * 3, "std": [0.5] * 3}
    expected = {
        "size": "the Keras model takes (None, 64, 64, 3), the example is of (1, 40, 40, 3)",
        "labels": "1 labels for a model that returns (None, 10)",
        "twice": "rescales its images itself: leave `normalization` out",
        "unbuilt": "does not know its input",
        "no vector": "it must return one (1, classes)",
    }
    assert messages.keys() == expected.keys()
    assert all(text in messages[name] for name, text in expected.items())


def test_nothing_imports_tensorflow_unasked():
    code = (
        "import sys, torch\nfrom converters import litert, verify\nfrom converters.litert import conversion\n"
        "import edgeprune.commands.verify\n"
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_torch_module_is_no_keras_model():
    import torch

    assert not keras_models.is_keras(torch.nn.Linear(2, 2))
