"""Labels as MediaPipe and the Task Library read them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from converters import litert
from converters.errors import UserError
from converters.litert import metadata
from converters.litert.graph import read_file
from tests.support.networks import Network

LABELS = ("blue", "Grün", "red")
SIZE_PX = 16


def write(path: Path, labels: tuple[str, ...] | None, folded: bool = True, std: float | None = 0.25) -> Path:
    net = Network(SIZE_PX)
    x = net.depthwise(net.conv(net.stem(16), 32))
    x = net.linear(net.flatten(net.mean(x)), len(LABELS))
    described = {
        "schema": 1,
        "input": {
            "shape": [3, SIZE_PX, SIZE_PX],
            "range": [0.0, 255.0] if folded else None,
            "mean": [0.5, 0.5, 0.5],
            "std": None if std is None else [0.25, 0.25, std],
        },
        "labels": None if labels is None else list(labels),
        "metadata": {},
    }
    metadata.write(net.graph, described)
    path.write_bytes(net.finish(x))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "a.tflite", LABELS)


def test_the_file_computes_the_same_and_the_labels_lie_behind_it(file: Path) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, SIZE_PX, SIZE_PX)).astype(np.float32)
    before, size = litert.load(file, apart=False).predict(images), file.stat().st_size
    assert litert.add_task_metadata(file) == file
    after = litert.load(file, apart=False)
    np.testing.assert_array_equal(after.predict(images), before)
    assert after.input.labels == LABELS
    assert metadata.names(read_file(file)) == ["edgeprune", "TFLITE_METADATA"]
    with zipfile.ZipFile(file) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(entry).decode().split("\n") == [*LABELS, ""]
    assert file.stat().st_size < size + 1500
    assert litert.inspect(file).layers == litert.inspect(write(file.with_name("b.tflite"), LABELS)).layers


def test_it_is_the_same_each_time(file: Path) -> None:
    other = write(file.with_name("b.tflite"), LABELS)
    assert litert.add_task_metadata(file).read_bytes() == litert.add_task_metadata(other).read_bytes()


def test_what_is_missing_is_one_message(tmp_path: Path, file: Path) -> None:
    silent = write(tmp_path / "silent.tflite", None, folded=False, std=None)
    with pytest.raises(UserError) as raised:
        litert.add_task_metadata(silent)
    assert [problem.split(": ", 1)[1] for problem in raised.value.problems] == [
        "it names no classes: convert it with labels",
        "it does not say how pixels are normalised",
    ]
    uneven = write(tmp_path / "uneven.tflite", LABELS, folded=False, std=0.2)
    with pytest.raises(UserError, match="its channels are normalised differently, which MediaPipe does not"):
        litert.add_task_metadata(uneven)
    litert.add_task_metadata(file)
    content = file.read_bytes()
    with pytest.raises(UserError, match="it has TFLITE_METADATA already"):
        litert.add_task_metadata(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("folded", [True, False])
def test_mediapipe_reads_it_and_feeds_the_file_what_we_do(folded: bool, tmp_path: Path) -> None:
    """By MediaPipe's own image classifier, which prepares the image by what it reads."""
    mediapipe = pytest.importorskip("mediapipe", reason="mediapipe is not installed")
    vision = pytest.importorskip("mediapipe.tasks.python.vision")
    base = mediapipe.tasks.BaseOptions
    file = write(tmp_path / "a.tflite", LABELS, folded)
    litert.add_task_metadata(file)
    options = vision.ImageClassifierOptions(base_options=base(model_asset_path=str(file)), max_results=-1)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
        found = classifier.classify(image).classifications[0].categories
    scores = {category.category_name: category.score for category in found}
    fed = pixels.astype(np.float32)
    if not folded:
        fed = (fed / 255 - np.float32(0.5)) / np.float32(0.25)
    expected = litert.load(file, apart=False).predict(fed.transpose(2, 0, 1)[None].astype(np.float32))[0]
    assert scores == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), rel=1e-3, abs=1e-3)
