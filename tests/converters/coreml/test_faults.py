"""Faults planted in a file: running the file must show each of them, or what runs is not the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from converters import coreml
from converters.errors import UserError
from converters.facts import Converted

# What a file without faults stays below: float16 and sparse, and int8.
FLOAT16_ERROR = 2e-3
INT8_ERROR = 2e-2


def error(path: Path, model: nn.Module, tools: Any) -> float:
    pixels = tools.pixels(20, 16)
    return tools.relative_error(coreml.load(path).predict(pixels), tools.run(model, tools.normalized(pixels)))


def test_the_files_without_faults_are_within_bounds(
    tiny: nn.Module, tiny_app: Converted, tiny_int8: Converted, tools: Any
) -> None:
    assert error(tiny_app.path, tiny, tools) <= FLOAT16_ERROR
    images = tools.images(20, 16)
    got = coreml.load(tiny_int8.path).predict(images)
    assert tools.relative_error(got, tools.run(tiny, images)) <= INT8_ERROR


def test_one_weight_changed(tiny: nn.Module, tiny_app: Converted, tmp_path: Path, tools: Any) -> None:
    def change(spec: Any, content: bytearray) -> None:
        start, end = tools.blob(spec, content, "constexpr_sparse_to_dense", "classifier_2", "nonzero_data")
        values = np.frombuffer(content, "<f2", (end - start) // 2, start)
        values[np.abs(values).argmax()] *= -1

    assert error(tools.edited(tiny_app.path, tmp_path / "f.mlpackage", change), tiny, tools) > FLOAT16_ERROR


def test_one_mask_bit_moved(tiny: nn.Module, tiny_app: Converted, tmp_path: Path, tools: Any) -> None:
    def change(spec: Any, content: bytearray) -> None:
        start, end = tools.blob(spec, content, "constexpr_sparse_to_dense", "classifier_2", "mask")
        bits = np.unpackbits(np.frombuffer(content, np.uint8, end - start, start), bitorder="little")
        first = int(bits.argmax())
        next_free = first + int((1 - bits[first:]).argmax())
        bits[first], bits[next_free] = 0, 1
        content[start:end] = np.packbits(bits, bitorder="little").tobytes()

    assert error(tools.edited(tiny_app.path, tmp_path / "f.mlpackage", change), tiny, tools) > FLOAT16_ERROR


def test_one_mask_bit_flipped(tiny_app: Converted, tmp_path: Path, tools: Any) -> None:
    def change(spec: Any, content: bytearray) -> None:
        start, _ = tools.blob(spec, content, "constexpr_sparse_to_dense", "classifier_0", "mask")
        content[start + 7] ^= 0b100

    path = tools.edited(tiny_app.path, tmp_path / "f.mlpackage", change)
    with pytest.raises(UserError, match=r"a sparse weight with 1,536 values for 1,53[57] places"):
        coreml.load(path)


def test_scales_shifted_by_one_channel(
    tiny: nn.Module, tiny_int8: Converted, tmp_path: Path, tools: Any
) -> None:
    def change(spec: Any, content: bytearray) -> None:
        # batch norm, folded in, gives each channel of this layer a range of its own
        name = next(
            layer for layer in coreml.inspect(tiny_int8.path).layers if layer.shape == (96, 16, 1, 1)
        ).name
        name = name.removesuffix("_sparsified")
        start, end = tools.blob(spec, content, "constexpr_sparse_blockwise_shift_scale", name, "scale")
        scales = np.frombuffer(content, "<f2", (end - start) // 2, start)
        content[start:end] = np.roll(scales, 1).tobytes()

    path = tools.edited(tiny_int8.path, tmp_path / "f.mlpackage", change)
    images = tools.images(20, 16)
    assert tools.relative_error(coreml.load(path).predict(images), tools.run(tiny, images)) > INT8_ERROR


def set_argument(operation: Any, spec: Any, values: tuple[float, ...], tools: Any) -> None:
    """Write a constant argument `y` of an operation anew, as float16 of shape (1, 3, 1, 1)."""
    name = operation.inputs["y"].arguments[0].name
    value = tools.operation_of(spec, "const", name).attributes["val"]
    assert len(value.immediateValue.tensor.bytes.values) == 6
    value.immediateValue.tensor.bytes.values = np.array(values, "<f2").tobytes()


@pytest.mark.parametrize(("type", "values"), [("sub", (0, 0, 0)), ("mul", (1 / 255, 1 / 255, 1 / 255))])
def test_normalisation_left_out(
    type: str, values: tuple[float, ...], tiny: nn.Module, tiny_app: Converted, tmp_path: Path, tools: Any
) -> None:
    def change(spec: Any, content: bytearray) -> None:
        function = spec.mlProgram.functions["main"]
        operations = function.block_specializations[function.opset].operations
        first = next(operation for operation in operations if operation.type == type)
        set_argument(first, spec, values, tools)

    assert error(tools.edited(tiny_app.path, tmp_path / "f.mlpackage", change), tiny, tools) > FLOAT16_ERROR


def swap_colors_in_description(spec: Any, content: bytearray) -> None:
    image = spec.description.input[0].type.imageType
    assert image.colorSpace == image.ColorSpace.Value("RGB")
    image.colorSpace = image.ColorSpace.Value("BGR")


def swap_colors_in_first_weight(spec: Any, content: bytearray) -> None:
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    name = next(op for op in operations if op.type == "conv").inputs["weight"].arguments[0].name
    (weight,) = [op for op in operations if op.outputs[0].name == name]
    record = weight.attributes["val"].blobFileValue.offset
    size, start = (int(n) for n in np.frombuffer(content[record + 8 : record + 24], "<u8"))
    values = np.frombuffer(content[start : start + size], "<f2").reshape(16, 3, 3, 3)
    content[start : start + size] = values[:, ::-1].tobytes()


@pytest.mark.parametrize("change", [swap_colors_in_description, swap_colors_in_first_weight])
def test_channels_swapped(
    change: Callable[[Any, bytearray], None], tiny: nn.Module, tiny_app: Converted, tmp_path: Path, tools: Any
) -> None:
    assert error(tools.edited(tiny_app.path, tmp_path / "f.mlpackage", change), tiny, tools) > FLOAT16_ERROR


def test_labels_rotated(tiny: nn.Module, tiny_app: Converted, tmp_path: Path, tools: Any) -> None:
    def change(spec: Any, content: bytearray) -> None:
        classes = tools.operation_of(spec, "classify", "classLabel").inputs["classes"].arguments[0].value
        texts = [value.immediateValue.tensor.strings for value in classes.immediateValue.list.values]
        for text, label in zip(texts, (*tools.LABELS[1:], tools.LABELS[0]), strict=True):
            text.values[0] = label

    path = tools.edited(tiny_app.path, tmp_path / "f.mlpackage", change)
    pixels = tools.pixels(20, 16)
    wanted = [tools.LABELS[i] for i in tools.run(tiny, tools.normalized(pixels)).argmax(1)]
    assert named(tiny_app.path, pixels) == wanted
    assert not any(name == other for name, other in zip(named(path, pixels), wanted, strict=True))


def named(path: Path, pixels: np.ndarray) -> list[str]:
    """The class of each image, by the names in the file."""
    package = coreml.load(path)
    assert package.input.labels is not None
    return [package.input.labels[i] for i in package.predict(pixels).argmax(1)]
