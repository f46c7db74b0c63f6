"""What is written: the right encodings, few bytes, the torch model's answers, the same bytes twice."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_large

from converters import coreml
from converters.coreml.package import read_package
from converters.errors import ToolError, UserError
from converters.facts import Converted, Normalization, sha256, size_bytes

EXAMPLE = torch.rand(1, 3, 16, 16)


def opened_by_coremltools(package: Path, tmp_path: Path) -> Any:
    """A copy, opened: coremltools writes the manifest of a package anew when it opens one."""
    from coremltools.models import MLModel

    shutil.copytree(package, tmp_path / "copy.mlpackage")
    return MLModel(str(tmp_path / "copy.mlpackage"), skip_model_load=True)


def test_sparse_package_has_the_sparse_operation_and_the_models_answers(
    tiny: nn.Module, tiny_sparse: Converted, tmp_path: Path, tools: Any
) -> None:
    spec = opened_by_coremltools(tiny_sparse.path, tmp_path).get_spec()
    function = spec.mlProgram.functions["main"]
    types = [op.type for op in function.block_specializations[function.opset].operations]
    # squeeze and excite have 128 weights: at 75 % zeros a mask pays even there
    assert types.count("constexpr_sparse_to_dense") == 6
    assert "batch_norm" not in types
    images = tools.images(7, 16)
    got = coreml.load(tiny_sparse.path).predict(images)
    assert got.dtype == np.float32
    assert tools.relative_error(got, tools.run(tiny, images)) <= 2e-3


def test_layers_are_named_as_in_the_model_and_counted_in_the_file(
    tiny: nn.Module, tiny_sparse: Converted, tools: Any
) -> None:
    layers = {layer.name: layer for layer in tiny_sparse.layers}
    weights = {
        name: module.weight
        for name, module in tiny.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert list(layers) == list(weights)  # execution order; here also that of the definition
    assert [layer.kind for layer in tiny_sparse.layers] == [
        "conv", "depthwise", "conv1x1", "conv1x1", "conv1x1", "conv1x1", "linear", "linear",
    ]  # fmt: skip
    for name, weight in weights.items():
        assert layers[name].shape == tuple(weight.shape)
        assert layers[name].zero_fraction == pytest.approx(float((weight == 0).float().mean()), abs=1e-9)
    for name in tools.prunable(tiny):
        count = weights[name].numel()
        kept = count - int(count * 0.75)
        assert layers[name].encoding == "sparse float16"
        assert layers[name].bits_per_weight == pytest.approx(1 + 16 * kept / count, rel=0.03)
    assert layers["stem.0"].bits_per_weight == 16


def test_decoded_weights_are_the_folded_weights_bit_for_bit(tiny: nn.Module, tiny_sparse: Converted) -> None:
    decoded = [weight for weight in coreml.decode(tiny_sparse.path) if weight.kind != "other"]
    modules = dict(tiny.named_modules())
    for weight, layer in zip(decoded, tiny_sparse.layers, strict=True):
        folded = modules[layer.name].weight.data
        norm = modules.get(layer.name[:-1] + "1") if layer.name.endswith(".0") else None
        if isinstance(norm, nn.BatchNorm2d):
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            folded = folded * scale.view(-1, 1, 1, 1)
            # the order of the factors may round another way: one step of float16
            assert np.allclose(weight.value, folded.detach().numpy(), rtol=2**-10, atol=1e-7)
        else:
            assert np.array_equal(weight.value, folded.half().numpy())
        assert np.array_equal(weight.value == 0, (folded == 0).numpy())


def test_decode_agrees_with_coremltools_own_decompression(tiny_int8: Converted, tmp_path: Path) -> None:
    import coremltools as ct

    dense = ct.optimize.coreml.decompress_weights(opened_by_coremltools(tiny_int8.path, tmp_path))
    target = tmp_path / "decompressed.mlpackage"
    dense.save(str(target))
    ours, theirs = coreml.decode(tiny_int8.path), coreml.decode(target)
    assert {weight.encoding for weight in ours} == {"sparse int8", "int8", "sparse float16", "float16"}
    assert {weight.encoding for weight in theirs} == {"float16"}
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(mine.value, other.value), mine.name


def test_model_and_temporary_folder_are_left_as_they_were(tmp_path: Path, monkeypatch: Any) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()
    before = copy.deepcopy(model.state_dict())
    coreml.convert(model, EXAMPLE, tmp_path / "m.mlpackage")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module.training for module in model.modules())
    assert list(scratch.iterdir()) == []
    assert tempfile.gettempdir() == str(scratch)


@pytest.mark.parametrize(
    ("target", "encoding", "value_bits"),
    [
        ("coreml-ios16", "sparse float16", 16),
        ("coreml-ios16-int8", "sparse float16", 16),
        ("coreml-ios16-6bit", "sparse float16", 16),
        ("coreml-ios16-4bit", "4-bit table", 4),
        ("coreml-ios17", "sparse float16", 16),
        ("coreml-ios18", "sparse float16", 16),
        ("coreml-ios18-int8", "sparse int8", 8),
        ("coreml-ios18-6bit", "sparse 6-bit table", 6),
        ("coreml-ios18-4bit", "sparse 4-bit table", 4),
    ],
)
def test_every_target_equals_the_torch_model_with_the_decoded_weights(
    target: str, encoding: str, value_bits: int, tiny: nn.Module, tiny_files: dict[str, Converted], tools: Any
) -> None:
    converted = tiny_files[target]
    images = tools.images(7, 16)
    got = coreml.load(converted.path).predict(images)
    assert tools.relative_error(got, tools.run(tools.twin(tiny, converted), images)) <= 1e-5
    assert tools.relative_error(got, tools.run(tiny, images)) > 1e-5  # it is not the float model that was run
    layers = {layer.name: layer for layer in converted.layers}
    assert layers["classifier.0"].encoding == encoding
    table_or_scales = 16 * (64 if encoding.endswith("int8") else 2**value_bits) / (64 * 96)
    expected = value_bits * 0.25 + 1 if encoding.startswith("sparse") else value_bits
    if "float16" not in encoding:
        expected += table_or_scales
    assert layers["classifier.0"].bits_per_weight == pytest.approx(expected, rel=0.03)
    assert layers["classifier.0"].zero_fraction >= 0.75


def test_int8_dense_layers_are_per_channel(tiny: nn.Module, tiny_int8: Converted) -> None:
    layers = {layer.name: layer for layer in tiny_int8.layers}
    assert layers["stem.0"].encoding == "int8"
    decoded = [weight for weight in coreml.decode(tiny_int8.path) if weight.kind != "other"]
    stem = decoded[0].value.astype(np.float64)
    steps = np.abs(stem).reshape(16, -1).max(1) / 127
    assert len(set(steps)) == 16
    assert np.allclose(
        stem / steps[:, None, None, None], np.rint(stem / steps[:, None, None, None]), atol=0.07
    )


def test_a_layer_left_dense_says_why(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 64, 1), nn.Conv2d(64, 64, 1)).eval()
    model[0].weight.data[:, 0] = 0  # 24 weights: mask and padding cost more than 8 zeros
    model[1].weight.data.zero_()
    model[2].weight.data[:, 32:] = 0
    converted = coreml.convert(model, EXAMPLE, tmp_path / "few.mlpackage")
    few, none, half = converted.layers
    assert few.encoding == "float16"
    assert few.note == (
        "33% of 24 weights are zero, stored dense: "
        "leaving them out takes 256 bytes, mask and padding included, instead of 128"
    )
    assert none.encoding == "float16"
    assert none.note == "100% of 512 weights are zero, stored dense: Core ML has no empty list of values"
    assert half.encoding == "sparse float16"
    assert half.note is None
    older = coreml.convert(model, EXAMPLE, tmp_path / "few.mlpackage", target="coreml-ios16-4bit")
    assert older.layers[2].encoding == "4-bit table"
    assert older.layers[2].note is not None
    assert older.layers[2].note.endswith("zeros left out of 4-bit table values need coreml-ios18-4bit")
    assert older.layers[2].zero_fraction >= 0.5  # the smallest weights share the entry that is zero


def test_package_takes_pixels_and_names_classes(tiny: nn.Module, tiny_app: Converted, tools: Any) -> None:
    package = coreml.load(tiny_app.path)
    assert package.input.shape == (3, 16, 16)
    assert package.input.range == (0.0, 255.0)
    assert package.input.labels == tools.LABELS
    pixels = tools.pixels(50, 16)
    wanted = tools.run(tiny, tools.normalized(pixels))
    got = package.predict(pixels)
    assert tools.relative_error(got, wanted) <= 2e-3
    assert np.array_equal(got.argmax(1), wanted.argmax(1))
    halved = coreml.load(tiny_app.path, activations="float16").predict(pixels)
    assert 1e-5 < tools.relative_error(halved, got) <= 1e-2
    facts = coreml.inspect(tiny_app.path)
    assert facts.metadata["author"] == "A. Author"
    assert facts.metadata["license"] == "Apache-2.0"
    assert facts.metadata["version"] == "1.2"
    assert facts.metadata["data"] == "digits"
    assert facts.metadata["compression"].startswith("layers: sparse float16 6, float16 2; 68.5% zeros")


def test_classifier_gives_apps_label_and_probabilities(tiny_app: Converted, tmp_path: Path) -> None:
    description = opened_by_coremltools(tiny_app.path, tmp_path).get_spec().description
    outputs = {feature.name: feature.type.WhichOneof("Type") for feature in description.output}
    assert outputs == {
        "classLabel": "stringType", "classLabel_probs": "dictionaryType", "logits": "multiArrayType",
    }  # fmt: skip
    assert description.predictedFeatureName == "classLabel"
    assert description.predictedProbabilitiesName == "classLabel_probs"
    image = description.input[0].type.imageType
    assert (image.width, image.height) == (16, 16)
    assert image.colorSpace == image.ColorSpace.Value("RGB")
    assert description.metadata.author == "A. Author"
    assert description.metadata.license == "Apache-2.0"
    assert description.metadata.versionString == "1.2"
    assert description.metadata.userDefined["compression"].startswith("layers: sparse float16 6")


def test_batches_and_single_images_agree(tiny_sparse: Converted, tools: Any) -> None:
    package = coreml.load(tiny_sparse.path)
    images = tools.images(5, 16)
    singly = np.concatenate([package.predict(image[None]) for image in images])
    assert np.allclose(package.predict(images), singly, rtol=1e-5, atol=1e-6)


def test_inspect_gives_the_facts(tiny_sparse: Converted, tiny_int8: Converted) -> None:
    facts = coreml.inspect(tiny_sparse.path)
    assert facts.bytes == tiny_sparse.bytes == size_bytes(tiny_sparse.path)
    assert facts.lowest_os == "iOS 16, macOS 13"
    assert facts.operations["conv"] == 6
    assert len(facts.skipped) == 6
    assert set(facts.skipped.values()) == {"75% zeros"}
    assert facts.leaving == ()
    assert [layer.encoding for layer in facts.layers] == [layer.encoding for layer in tiny_sparse.layers]
    assert [layer.kind for layer in facts.layers] == [layer.kind for layer in tiny_sparse.layers]
    assert coreml.inspect(tiny_int8.path).lowest_os == "iOS 18, macOS 15"


# Bytes at most, encoding of the classifier, bits of a value. One system, so that it is converted only once.
LARGE = {
    "coreml-ios18": (3_750_000, "sparse float16", 16),
    "coreml-ios18-int8": (2_400_000, "sparse int8", 8),
    "coreml-ios18-4bit": (1_750_000, "sparse 4-bit table", 4),
}


@pytest.mark.slow
def test_mobilenet_v3_large_with_three_quarters_zeros_fits(tmp_path: Path, tools: Any) -> None:
    torch.manual_seed(0)
    model = tools.prepare(mobilenet_v3_large(weights=None))
    paths = {target: tmp_path / f"{target}.mlpackage" for target in LARGE}
    for target, converted in coreml.convert_all(model, torch.rand(1, 3, 32, 32), paths).items():
        most_bytes, encoding, value_bits = LARGE[target]
        assert converted.bytes <= most_bytes
        layers = {layer.name: layer for layer in converted.layers}
        assert layers["classifier.3"].encoding == encoding
        assert all(layers[name].zero_fraction >= 0.749 for name in tools.prunable(model))
        counts = {layer.name: np.prod(layer.shape) for layer in converted.layers}
        # 1 bit for every weight and a value for each that is left; the rest as it is
        formula = sum(
            counts[layer.name] * (1 + (1 - layer.zero_fraction) * value_bits)
            for layer in converted.layers
            if layer.encoding == encoding
        )
        stored = [layer for layer in converted.layers if layer.encoding == encoding]
        rest = converted.bytes - sum(counts[layer.name] * layer.bits_per_weight for layer in stored) / 8
        assert sum(counts[layer.name] for layer in stored) >= 5_000_000
        assert converted.bytes <= 1.03 * formula / 8 + rest
        assert rest <= 450_000


def test_mobilenet_v3_small_runs_right(v3_small: nn.Module, small_sparse: Converted, tools: Any) -> None:
    package = coreml.load(small_sparse.path)
    images = tools.images(200, 64)
    got, wanted = package.predict(images), tools.run(v3_small, images)
    assert tools.relative_error(got, wanted) <= 2e-3
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.99


def test_a_head_with_hard_swish_is_written_as_convolutions_where_asked(tmp_path: Path, tools: Any) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(16, 24), nn.Hardswish(), nn.Linear(24, 5))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    plain, pointwise = (
        coreml.convert(model, torch.zeros(1, 3, 9, 9), tmp_path / f"{flag}.mlpackage", pointwise_head=flag)
        for flag in (False, True)
    )
    operations = [coreml.inspect(file.path).operations for file in (plain, pointwise)]
    assert [found.get("linear", 0) for found in operations] == [2, 0]
    assert [found["conv"] for found in operations] == [1, 3]
    assert [layer.name for layer in plain.layers] == [layer.name for layer in pointwise.layers]
    given = tools.images(3, 9)
    wanted = tools.run(model, given)
    for file in (plain, pointwise):
        assert tools.relative_error(coreml.load(file.path, native=False).predict(given), wanted) < 2e-3


def test_two_conversions_differ_in_nothing(
    tiny: nn.Module, tiny_app: Converted, tmp_path: Path, tools: Any
) -> None:
    """What is random in a package that coremltools saves, a date and two identifiers, is not in ours."""
    opened = opened_by_coremltools(tiny_app.path, tmp_path)
    saved = [tmp_path / "saved-1.mlpackage", tmp_path / "saved-2.mlpackage"]
    for path in saved:
        model = type(opened)(opened.get_spec(), weights_dir=opened.weights_dir, skip_model_load=True)
        model.save(str(path))
    first, second = (contents(path) for path in saved)
    assert {name for name in first if first[name] != second[name]} == {"Manifest.json"}
    items = [json.loads((path / "Manifest.json").read_text())["itemInfoEntries"] for path in saved]
    assert not set(items[0]) & set(items[1])  # the identifiers, and nothing else
    described = [sorted(item.values(), key=lambda item: str(item["path"])) for item in items]
    assert described[0] == described[1]
    assert not any("date" in key for key in coreml.inspect(tiny_app.path).metadata)

    options: dict[str, Any] = {"labels": tools.LABELS, "normalization": tools.NORMALIZATION}
    options["metadata"] = {"author": "A. Author", "license": "Apache-2.0", "version": "1.2", "data": "digits"}
    again = coreml.convert(tiny, EXAMPLE, tmp_path / "again.mlpackage", **options)
    assert contents(again.path) == contents(tiny_app.path)
    assert sha256(again.path) == sha256(tiny_app.path)
    torch.save((tiny, EXAMPLE, options), tmp_path / "arguments.pt")
    script = (
        "import sys, torch; sys.path[:0] = sys.argv[2:]; from converters import coreml;"
        "model, example, options = torch.load(sys.argv[1] + '/arguments.pt', weights_only=False);"
        "coreml.convert(model, example, sys.argv[1] + '/elsewhere.mlpackage', **options);"
        "assert 'tensorflow' not in sys.modules"
    )
    here = Path(__file__)
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(here.parents[3]), str(here.parent)],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")  # nothing of what the frameworks have to say
    assert contents(tmp_path / "elsewhere.mlpackage") == contents(tiny_app.path)


def contents(package: Path) -> dict[str, str]:
    return {
        file.relative_to(package).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(package.rglob("*"))
        if file.is_file()
    }


class Twice(nn.Module):
    """One layer that runs twice, and two layers that batch norm makes equal."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.other = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.twice = twice
        for norm in (self.block[1], self.other[1]):
            nn.init.zeros_(norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.twice:
            return self.last(torch.relu(self.last(x)))
        return self.last(x + self.block(x) + self.other(torch.relu(x)))


@pytest.mark.parametrize(
    ("twice", "names"),
    [(True, ["stem", "last"]), (False, ["stem", "block.0", "other.0", "last"])],
)
def test_shared_weights_keep_the_names_right(twice: bool, names: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Twice(twice).eval()
    with torch.no_grad():
        model.last.weight[:, :12] = 0
    converted = coreml.convert(model, EXAMPLE, tmp_path / "m.mlpackage", target="coreml-ios18-int8")
    assert len(coreml.inspect(converted.path).layers) == (2 if twice else 3)  # coremltools did merge the two
    assert [layer.name for layer in converted.layers] == names
    assert 0.75 <= converted.layers[-1].zero_fraction <= 0.8
    assert [layer.zero_fraction for layer in converted.layers[1:-1]] == [1.0] * (len(names) - 2)


def test_a_package_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "there.mlpackage"
    (path / "Data").mkdir(parents=True)
    (path / "Manifest.json").write_text("{}")
    (path / "Data" / "left-over").write_text("from before")
    coreml.convert(nn.Conv2d(3, 4, 1).eval(), EXAMPLE, path)
    assert coreml.load(path).input.shape == (3, 16, 16)
    assert not (path / "Data" / "left-over").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["there.mlpackage"]


@pytest.mark.parametrize("where", ["a-file/m.mlpackage", "a-file/b/m.mlpackage"])
def test_a_folder_that_cannot_be_written_is_one_message(where: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written: (Not a directory|File exists)"):
        coreml.convert(nn.Conv2d(3, 4, 1).eval(), EXAMPLE, tmp_path / where)
    assert [file.name for file in tmp_path.rglob("*")] == ["a-file"]


def _training() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def _classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def _convolution() -> nn.Module:
    return nn.Conv2d(3, 4, 1).eval()


def _broken(value: float) -> nn.Module:
    model = _classifier()
    model[0].weight.data[0, 0] = value
    return model


class Backbone(nn.Module):
    """Several maps, as a detector's head takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        near = torch.relu(self.near(x))
        return {"0": near, "pool": self.far(near)}


def test_a_backbone_gives_all_its_maps(tmp_path: Path, tools: Any) -> None:
    torch.manual_seed(0)
    model = Backbone().eval()
    package = coreml.load(coreml.convert(model, EXAMPLE, tmp_path / "maps.mlpackage").path)
    assert package.outputs == ("features_0", "features_pool")
    images = tools.images(3, 16)
    got = package.predict_all(images)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images))
    assert tools.relative_error(got["features_0"], wanted["0"].numpy()) <= 2e-3
    assert tools.relative_error(got["features_pool"], wanted["pool"].numpy()) <= 2e-3
    with pytest.raises(
        UserError, match="gives features_0, features_pool: `predict_all` returns them by name"
    ):
        package.predict(images)


class _Detections(nn.Module):
    def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{"boxes": x.mean((2, 3))}]


class _Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


TAKEN = "taken.mlpackage exists and is not a Core ML package: not overwritten"
IN_255 = Normalization(mean=(123, 116, 103), std=(58, 57, 57))
NO_STD = Normalization(mean=(0, 0, 0), std=(1, 0, 1))


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (_training(), {}, "model is in training mode (Sequential): call model.eval() before converting"),
        (_broken(float("nan")), {}, "0.weight has values that are not finite (NaN or infinity)"),
        (_broken(70_000), {}, "0 has weights up to 70,000 once batch norms are folded in, and float16 ends"),
        (_classifier(), {"example": torch.rand(3, 8, 8)}, "shape (3, 8, 8), expected (1, channels, height"),
        (
            _classifier(),
            {"example": torch.rand(2, 3, 8, 8)},
            "shape (2, 3, 8, 8), expected (1, channels, height",
        ),
        (_classifier(), {"example": torch.rand(1, 3, 8, 8).half()}, "torch.float16, expected torch.float32"),
        (
            _classifier(),
            {"target": "coreml-ios12"},
            "unknown target 'coreml-ios12': choose from coreml-ios16, ",
        ),
        (
            _classifier(),
            {"target": "litert-arm64"},
            "unknown target 'litert-arm64': choose from coreml-ios16, ",
        ),
        (_classifier(), {"labels": ["a", "b"]}, "2 labels for a model of 4 classes"),
        (
            _classifier(),
            {"labels": ["a", "b", "b", "c"]},
            "labels that appear twice, which apps cannot tell",
        ),
        (
            _convolution(),
            {"labels": ["a"]},
            "1 labels for a model of",
        ),
        (
            _Detections().eval(),
            {},
            "model gives a list that is not of tensors; expected a tensor, or a dict,",
        ),
        (Backbone().eval(), {"labels": ["a"]}, "labels are for a classifier; this model gives 2 outputs"),
        (
            _classifier(),
            {"target": "coreml-ios17-int8"},
            "targets with int8 weights: coreml-ios16-int8 and coreml-ios18-int8",
        ),
        (
            _classifier(),
            {"target": "coreml-ios16-sparse-int8"},
            "targets with sparse int8 weights: coreml-ios18-int8",
        ),
        (
            _classifier(),
            {"normalization": NO_STD},
            "normalization std (1, 0, 1): every value must be above 0",
        ),
        (
            _classifier(),
            {"normalization": IN_255},
            "normalization mean (123, 116, 103), std (58, 57, 57): values are for pixels in",
        ),
        (
            _classifier(),
            {"name": "model.tflite"},
            "model.tflite: the name of a Core ML package ends in .mlpackage",
        ),
        (_classifier(), {"name": "taken.mlpackage"}, TAKEN),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(
    model: nn.Module, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "taken.mlpackage").mkdir()
    arguments = {"example": torch.rand(1, 3, 8, 8), **arguments}
    with pytest.raises(UserError) as caught:
        coreml.convert(
            model, arguments.pop("example"), tmp_path / arguments.pop("name", "m.mlpackage"), **arguments
        )
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1
    assert [file.name for file in tmp_path.rglob("*")] == ["taken.mlpackage"]


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        coreml.convert(
            _training(),
            torch.rand(1, 1, 8, 8),
            tmp_path / "x.tflite",
            normalization=Normalization((0,) * 3, (1,) * 3),
        )
    assert len(caught.value.problems) == 3


def test_a_model_that_cannot_be_traced_is_a_tool_error(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"torch\.export could not trace the model: "):
        coreml.convert(_Branch().eval(), EXAMPLE, tmp_path / "m.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_maps_says_the_names_of_its_classes(tmp_path: Path) -> None:
    """It is no classifier; the names are where Xcode looks for those of a segmentation."""
    model, labels = nn.Conv2d(3, 3, 1).eval(), ("sky", "road", "car")
    coreml.convert(model, EXAMPLE, tmp_path / "maps.mlpackage", labels=labels)
    loaded = coreml.load(tmp_path / "maps.mlpackage")
    assert loaded.input.labels == labels
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        np.testing.assert_allclose(loaded.predict(images.numpy()), model(images), atol=2e-3)
    told = opened_by_coremltools(tmp_path / "maps.mlpackage", tmp_path).user_defined_metadata
    assert told["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    assert json.loads(told["com.apple.coreml.model.preview.params"]) == {"labels": list(labels)}


class _Front(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, (1, 2), 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.body(x))
        return {"scores": self.head(features.mean((2, 3))), "features": features}


def test_a_map_goes_from_one_package_into_the_other(tmp_path: Path, tools: Any) -> None:
    """The first has outputs called as the model calls them, the second an input called so."""
    torch.manual_seed(0)
    front, rest = _Front().eval(), nn.Sequential(nn.Conv2d(8, 4, (16, 8)), nn.Flatten()).eval()
    images = tools.images(3, 16)
    wanted = front(torch.from_numpy(images))
    first = coreml.load(coreml.convert(front, EXAMPLE, tmp_path / "front.mlpackage").path)
    features = front(EXAMPLE)["features"].detach()
    path = coreml.convert(rest, features, tmp_path / "rest.mlpackage", labels=list("abcd")).path
    second = coreml.load(path)
    assert first.outputs == ("scores", "features")
    assert second.input.shape == (8, 16, 8)
    given = first.predict_all(images)
    for name, part in given.items():
        assert tools.relative_error(part, wanted[name].detach().numpy()) <= 2e-3
    answers = rest(wanted["features"]).detach().numpy()
    assert tools.relative_error(second.predict(given["features"]), answers) <= 5e-3
    (taken,) = read_package(path).spec.description.input
    assert (taken.name, taken.shortDescription) == ("features", "feature map of the package before")
    with pytest.raises(UserError, match=r"takes images of shape \(n, 8, 16, 8\), got \(3, 3, 16, 16\)"):
        second.predict(images)
    normalization = Normalization((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="expected \\(1, 3, height, width\\)"):
        coreml.convert(rest, features, tmp_path / "x.mlpackage", normalization=normalization)
