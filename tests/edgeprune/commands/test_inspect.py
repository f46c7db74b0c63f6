import re

import numpy as np
import pytest

from converters.litert.graph import read_file, weights
from edgeprune.cli import main


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("block80-litert-arm64-int8.tflite", "sparse kernels on arm64: yes"),
        ("channels-litert-arm64-int8.tflite", "sparse kernels on arm64: no"),
        ("block80-coreml-ios16.mlpackage", "runs on iOS 16"),
    ],
)
def test_a_file_is_shown_layer_by_layer(finished_run, capsys, file, told):
    assert main(["inspect", str(finished_run / "files" / file)]) == 0
    shown = capsys.readouterr().out
    assert told in shown
    sparse = [line for line in shown.splitlines() if "sparse" in line and " % " in line]
    assert (len(sparse) > 30) == file.startswith("block80")


def test_a_file_that_is_no_classifier_is_shown_too(finished_run, capsys, tmp_path):
    graph = read_file(finished_run / "files" / "block80-litert-arm64-int8.tflite")
    graph.subgraph.outputs = np.array([*graph.subgraph.outputs, graph.ops[0].outputs[0]], np.int32)
    for op, _ in weights(graph):
        name = graph.tensors[int(op.inputs[1])].name
        graph.tensors[int(op.inputs[1])].name = b"a_long_name_" * 8 + name
    path = tmp_path / "detector.tflite"
    path.write_bytes(graph.to_bytes())
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "takes 1x32x32x3, gives 2 tensors\n" in shown
    assert re.search(r"\n +…\w+_name_classifier\.3 ", shown)
    assert " 3x1024 " in shown


def test_a_damaged_file_is_refused(tmp_path, capsys):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a model")
    assert main(["inspect", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_package_tells_what_an_app_and_the_neural_engine_make_of_it(finished_run, capsys):
    path = finished_run / "files" / "block80-coreml-ios16.mlpackage"
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert f"{size:,} bytes; runs on iOS 16, macOS 13 and later\n" in shown
    assert "px, plain pixels from 0 to 255; names " in shown
    assert "known to leave the Neural Engine: none\n" in shown
    assert "\ncompression: layers: sparse float16 " in shown
    skipped, sparse = map(int, re.search(r"may skip: (\d+) of (\d+) sparse layers", shown).groups())
    assert 30 < skipped <= sparse
    assert sum(line.rstrip().endswith(" yes") for line in shown.splitlines()) == skipped
