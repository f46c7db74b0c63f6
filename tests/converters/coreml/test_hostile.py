"""Damaged and hostile packages: one message, and nothing read outside the package."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import coreml
from converters.coreml.package import Contents
from converters.errors import UserError
from converters.facts import Converted
from edgeprune.cli import main

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def without_weights(package: Path) -> None:
    (package / WEIGHTS).unlink()


def with_half_the_weights(package: Path) -> None:
    content = (package / WEIGHTS).read_bytes()
    (package / WEIGHTS).write_bytes(content[: len(content) // 2])


def with_empty_weights(package: Path) -> None:
    (package / WEIGHTS).write_bytes(b"")


def with_zeros_for_weights(package: Path) -> None:
    (package / WEIGHTS).write_bytes(bytes((package / WEIGHTS).stat().st_size))


def with_half_a_specification(package: Path) -> None:
    content = (package / MODEL).read_bytes()
    (package / MODEL).write_bytes(content[: len(content) // 2])


def with_text_for_a_specification(package: Path) -> None:
    (package / MODEL).write_text("not a protobuf at all")


def with_empty_specification(package: Path) -> None:
    (package / MODEL).write_bytes(b"")


def without_specification(package: Path) -> None:
    (package / MODEL).unlink()


def with_broken_manifest(package: Path) -> None:
    (package / "Manifest.json").write_text("{")


def with_manifest_of_lists(package: Path) -> None:
    (package / "Manifest.json").write_text("[[1]]")


def with_model_at(path: str) -> Callable[[Path], None]:
    """The manifest names a model outside, where there is a good one."""

    def change(package: Path) -> None:
        manifest = json.loads((package / "Manifest.json").read_text())
        item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        item["path"] = path.replace("OUTSIDE", str(package.parent / "outside.mlpackage"))
        (package / "Manifest.json").write_text(json.dumps(manifest))

    return change


def with_linked_model(package: Path) -> None:
    (package / MODEL).unlink()
    (package / MODEL).symlink_to(package.parent / "outside.mlpackage" / MODEL)


def with_linked_weights(package: Path) -> None:
    shutil.rmtree(package / "Data/com.apple.CoreML/weights")
    (package / "Data/com.apple.CoreML/weights").symlink_to(
        package.parent / "outside.mlpackage/Data/com.apple.CoreML/weights"
    )


def rewrite(package: Path, change: Callable[[Any], None]) -> None:
    from coremltools import proto

    spec = proto.Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())


def first_blob(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        for value in operation.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                return value
    raise AssertionError


def with_weights_at(name: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = name.replace("OUTSIDE", str(package.parent / "outside.mlpackage"))
        rewrite(package, lambda spec: setattr(first_blob(spec).blobFileValue, "fileName", path))

    return change


def with_offset(offset: int) -> Callable[[Path], None]:
    return lambda package: rewrite(
        package, lambda spec: setattr(first_blob(spec).blobFileValue, "offset", offset)
    )


def with_a_huge_shape(package: Path) -> None:
    def change(spec: Any) -> None:
        for dimension in first_blob(spec).type.tensorType.dimensions:
            dimension.constant.size = 2**31

    rewrite(package, change)


def with_operation(type: str) -> Callable[[Path], None]:
    def change(spec: Any) -> None:
        function = spec.mlProgram.functions["main"]
        operations = function.block_specializations[function.opset].operations
        next(operation for operation in operations if operation.type == "relu").type = type

    return lambda package: rewrite(package, change)


def with_another_stride(package: Path) -> None:
    def change(spec: Any) -> None:
        function = spec.mlProgram.functions["main"]
        operations = function.block_specializations[function.opset].operations
        name = next(op for op in operations if op.type == "conv").inputs["strides"].arguments[0].name
        (strides,) = [op for op in operations if op.outputs[0].name == name]
        strides.attributes["val"].immediateValue.tensor.ints.values[:] = [1, 1]

    rewrite(package, change)


# What no reader of a package may take, and what only running it shows.
DAMAGE = [
    (without_weights, "weight.bin is missing"),
    (with_half_the_weights, "of a weight file that has 4,714 bytes"),
    (with_empty_weights, "of a weight file that has 0 bytes"),
    (with_zeros_for_weights, "no weight record at byte 64 of the weight file"),
    (with_half_a_specification, "model.mlmodel is not a Core ML specification, or was damaged"),
    (with_text_for_a_specification, "model.mlmodel is not a Core ML specification, or was damaged"),
    (with_empty_specification, "holds a model of no type, expected an ML program"),
    (without_specification, "which Manifest.json names as the model, is missing"),
    (with_broken_manifest, "Manifest.json does not name the model"),
    (with_manifest_of_lists, "Manifest.json does not name the model"),
    (with_model_at(f"../../outside.mlpackage/{MODEL}"), "leads out of the package"),
    (with_model_at(f"OUTSIDE/{MODEL}"), "leads out of the package"),
    (with_model_at("com.apple.CoreML/\0"), "is not a path"),
    (with_model_at("."), "which Manifest.json names as the model, is missing"),
    (with_linked_model, "leads out of the package"),
    (with_linked_weights, "leads out of the package"),
    (with_weights_at(f"@model_path/../../../outside.mlpackage/{WEIGHTS}"), "leads out of the package"),
    (with_weights_at(f"OUTSIDE/{WEIGHTS}"), "is not inside the package"),
    (with_weights_at(f"@model_path/OUTSIDE/{WEIGHTS}"), "leads out of the package"),
    (with_offset(10**9), "a weight at byte 1,000,000,000 of a weight file that has 9,428 bytes"),
    (with_offset(2**64 - 32), "a weight at byte 18,446,744,073,709,551,584 of a weight file"),
    (with_offset(80), "no weight record at byte 80 of the weight file"),
    (with_a_huge_shape, "larger than any that a vision model has"),
]
FAULTS = [
    (with_operation("read_state"), "operations that cannot be evaluated here: 'read_state' at "),
    (with_operation("conv"), "operation 'conv' at "),
    (with_another_stride, "gives shape [1, 16, 16, 16], declared is [1, 16, 8, 8]"),
]


class Opened:
    """The files that Python opens while this is active, those it imports left out."""

    def __init__(self) -> None:
        self.active = False
        self.paths: list[Path] = []
        sys.addaudithook(self._note)  # which stays: there is no way to remove it

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event == "open" and isinstance(arguments[0], (str, bytes)):
            path = Path(os.fsdecode(arguments[0]))
            if path.suffix not in (".py", ".pyc", ".so"):
                self.paths.append(path)

    @contextmanager
    def watched(self) -> Iterator[list[Path]]:
        self.paths = []
        self.active = True
        try:
            yield self.paths
        finally:
            self.active = False


@pytest.fixture(scope="module")
def opened(tiny_app: Converted) -> Opened:
    coreml.load(tiny_app.path).predict(np.zeros((2, 3, 16, 16), np.float32))  # imports what it imports
    main(["inspect", str(tiny_app.path)])
    return Opened()


@pytest.fixture
def package(tiny_app: Converted, tmp_path: Path) -> Path:
    """A good package, and another outside it."""
    shutil.copytree(tiny_app.path, tmp_path / "outside.mlpackage")
    shutil.copytree(tiny_app.path, tmp_path / "hostile.mlpackage")
    return tmp_path / "hostile.mlpackage"


def all_inside(paths: list[Path], package: Path) -> bool:
    return all(path.resolve().is_relative_to(package.resolve()) for path in paths)


@pytest.mark.parametrize(("damage", "message"), [*DAMAGE, *FAULTS])
def test_damage_is_one_message_that_names_the_package(
    damage: Callable[[Path], None], message: str, package: Path, opened: Opened
) -> None:
    damage(package)
    with opened.watched() as paths, pytest.raises(UserError) as caught:
        coreml.load(package)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(str(package))
    assert message in str(caught.value)
    assert all_inside(paths, package)


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_ends_the_command_line_with_2_and_one_message(
    damage: Callable[[Path], None], message: str, package: Path, opened: Opened, capsys: Any
) -> None:
    damage(package)
    with opened.watched() as paths:
        status = main(["inspect", str(package)])
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.startswith(f"error: {package}: not a usable Core ML package: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert all_inside(paths, package)


def test_what_is_opened_is_seen(package: Path, opened: Opened) -> None:
    with opened.watched() as paths:
        coreml.load(package)
    assert [path.name for path in paths] == ["Manifest.json", "model.mlmodel", "weight.bin"]
    assert all_inside(paths, package)
    with opened.watched() as paths:
        (package.parent / "outside.mlpackage" / WEIGHTS).read_bytes()
    assert not all_inside(paths, package)


@pytest.mark.parametrize("look", [coreml.load, coreml.decode, coreml.inspect])
def test_what_is_no_package_is_one_message(look: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "file.mlpackage").write_text("x")
    (tmp_path / "folder.mlpackage").mkdir()
    for name, message in [
        ("missing.mlpackage", "no such file; expected a Core ML package"),
        ("file.mlpackage", "not a Core ML package: expected a folder with a Manifest.json in it"),
        ("folder.mlpackage", "not a Core ML package: expected a folder with a Manifest.json in it"),
    ]:
        with pytest.raises(UserError, match=message):
            look(tmp_path / name)


@pytest.mark.parametrize(("file", "rounds"), [(MODEL, 400), (WEIGHTS, 80), ("Manifest.json", 200)])
def test_bytes_at_random_give_a_message_or_an_answer(
    file: str, rounds: int, tiny_int8: Converted, tmp_path: Path
) -> None:
    package = tmp_path / "random.mlpackage"
    shutil.copytree(tiny_int8.path, package)
    good = (package / file).read_bytes()
    random = np.random.default_rng(0)
    image = np.zeros((1, 3, 16, 16), np.float32)
    messages = []
    for _ in range(rounds):
        damaged = bytearray(good)
        for place in random.integers(0, len(good), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        (package / file).write_bytes(damaged)
        try:
            answer = coreml.load(package).predict(image)
        except UserError as error:
            messages.append(str(error))
        else:
            assert answer.shape == (1, 10)
    assert len(messages) > 5
    assert all(message.startswith(str(package)) for message in messages)


def test_images_of_another_shape_are_refused(tiny_app: Converted) -> None:
    package = coreml.load(tiny_app.path)
    for shape in [(2, 3, 8, 8), (3, 16, 16), (2, 16, 16, 3)]:
        with pytest.raises(UserError, match=r"takes images of shape \(n, 3, 16, 16\), got"):
            package.predict(np.zeros(shape, np.float32))
    with pytest.raises(UserError, match="no images to run"):
        package.predict(np.zeros((0, 3, 16, 16), np.float32))
    with pytest.raises(UserError, match="activations 'int8': choose float32 or float16"):
        coreml.load(tiny_app.path, activations="int8")  # type: ignore[arg-type]


def test_weight_file_of_any_name_is_kept_inside(tmp_path: Path) -> None:
    from converters.coreml.blobs import MalformedError

    (tmp_path / "secret").write_text("outside")
    package = tmp_path / "p.mlpackage"
    package.mkdir()
    contents = Contents(package, None, package)
    for name in ["@model_path/../secret", "/etc/passwd", "../secret", "@model_path//etc/passwd", ""]:
        with pytest.raises(MalformedError):
            contents.weight_file(name)
