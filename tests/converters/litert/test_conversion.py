"""From torch to a file and back: the sparse op is in it, the numbers are right, the bytes are few."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from converters import agreement, litert
from converters.errors import ToolError, UserError
from converters.facts import Converted, Normalization
from converters.layers import weighted_layers
from converters.litert import checking, metadata
from converters.litert.conversion import name_weights
from converters.litert.graph import read_file, weights
from converters.litert.inspection import dequantized, torch_layout

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TOLERANCE = 1e-4


def zero_blocks(model: nn.Module, fraction: float, block: int = 4) -> None:
    """Zero blocks of one output by `block` inputs of every 1x1 convolution and linear layer, by position."""
    random = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            weight = module.weight.data
            groups = weight.reshape(-1, block if weight.shape[1] % block == 0 else 1)
            chosen = random.permutation(len(groups))[: round(fraction * len(groups))]
            groups[torch.from_numpy(chosen)] = 0


def settled(model: nn.Module) -> nn.Module:
    """Batch norms that do something, so that folding them is tested."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.1
    return model.eval()


class Tiny(nn.Module):
    """Everything MobileNetV3 is made of, once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(64, 64, 5, 2, 2, groups=64, bias=False), nn.BatchNorm2d(64))
        self.squeeze, self.excite = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1)
        self.project = nn.Conv2d(64, 64, 1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.expand(self.stem(x)))
        gate = nn.functional.hardsigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = self.project(x * gate) + x
        result: torch.Tensor = self.classifier(x.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    model = settled(Tiny())
    zero_blocks(model, 0.8)
    return model


@pytest.fixture(scope="module")
def lowered(tiny: nn.Module, images: torch.Tensor) -> bytes:
    return litert.lower(tiny, images[:1])


@pytest.fixture(scope="module")
def float_file(tiny: nn.Module, images: torch.Tensor, lowered: bytes, tmp_path_factory: Any) -> Converted:
    path = tmp_path_factory.mktemp("litert") / "float.tflite"
    return litert.convert(tiny, images[:1], path, lowered=lowered)


@pytest.fixture(scope="module")
def int8_file(tiny: nn.Module, images: torch.Tensor, lowered: bytes, tmp_path_factory: Any) -> Converted:
    path = tmp_path_factory.mktemp("litert") / "int8.tflite"
    return litert.convert(
        tiny, images[:1], path, target="litert-arm64-int8", labels=list("abcdefghij"), lowered=lowered
    )


def relative_error(found: np.ndarray, expected: torch.Tensor) -> float:
    wanted = expected.detach().numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def decoded_into(model: nn.Module, path: Path) -> nn.Module:
    """`model` without batch norms, holding the weights that the file decodes to."""
    graph = read_file(path)
    fused = copy.deepcopy(model)
    for name in ("stem", "expand", "depthwise"):
        part = getattr(fused, name)
        part[0] = nn.utils.fusion.fuse_conv_bn_eval(part[0], part[1])
        part[1] = nn.Identity()
    for op, tensor in weights(graph):
        name = graph.name(int(op.inputs[1]))
        weight = torch.from_numpy(torch_layout(graph.op_name(op), dequantized(graph, tensor)).copy())
        fused.get_submodule(name).weight.data = weight
    return fused


def test_the_sparse_op_is_in_the_file_with_its_parameters(float_file: Converted) -> None:
    graph = read_file(float_file.path)
    packed = [int(op.inputs[0]) for op in graph.ops if graph.op_name(op) == "DENSIFY"]
    assert len(packed) >= 4
    for tensor in packed:
        assert graph.tensors[tensor].sparsity is not None
        assert graph.tensors[tensor].sparsity.blockMap is not None
        assert graph.type_name(tensor) == "FLOAT32"
        assert graph.stored_values(tensor).size < np.prod(graph.shape(tensor)) * 0.3


def test_the_float_file_computes_what_torch_does(
    float_file: Converted, tiny: nn.Module, images: torch.Tensor
) -> None:
    found = litert.load(float_file.path).predict(images.numpy())
    assert found.shape == (2, 10)
    assert relative_error(found, tiny(images)) < TOLERANCE


def test_the_int8_file_computes_what_its_decoded_weights_do(
    int8_file: Converted, tiny: nn.Module, images: torch.Tensor
) -> None:
    graph = read_file(int8_file.path)
    packed = [int(op.inputs[0]) for op in graph.ops if graph.op_name(op) == "DENSIFY"]
    assert {graph.type_name(t) for t in packed} == {"INT8"}
    found = litert.load(int8_file.path).predict(images.numpy())
    assert relative_error(found, decoded_into(tiny, int8_file.path)(images)) < TOLERANCE
    assert relative_error(found, tiny(images)) < 0.05


def test_both_files_run_sparse(float_file: Converted, int8_file: Converted) -> None:
    for file in (float_file, int8_file):
        assert litert.lint(file.path, "arm64") == litert.lint(file.path, "web")
        assert litert.lint(file.path).sparse
        assert litert.lint(file.path).sparse_fraction == 1.0


def test_layers_are_called_what_torch_calls_them(int8_file: Converted) -> None:
    named = {layer.name: layer for layer in int8_file.layers}
    assert list(named) == [
        *("stem.0", "expand.0", "depthwise.0", "squeeze", "excite", "project", "classifier"),
    ]
    assert named["depthwise.0"].shape == (64, 1, 5, 5)
    assert named["depthwise.0"].kind == "depthwise"
    assert named["stem.0"].shape == (16, 3, 3, 3)
    assert named["stem.0"].kind == "conv"
    assert named["project"].shape == (64, 64, 1, 1)
    assert named["project"].encoding == "sparse int8, 1x4 blocks"
    assert named["project"].zero_fraction >= 0.8
    assert named["project"].bits_per_weight < 3
    assert named["classifier"].kind == "linear"


def test_inspect_reads_the_same_facts_from_the_file(int8_file: Converted) -> None:
    seen = litert.inspect(int8_file.path)
    assert seen.layers == int8_file.layers
    assert seen.bytes == int8_file.bytes == int8_file.path.stat().st_size
    assert seen.weights == sum(int(np.prod(layer.shape)) for layer in seen.layers)
    assert 0.5 < seen.zero_fraction < 0.8
    assert seen.bits_per_weight < 6


def test_what_the_file_expects_reads_back(float_file: Converted, int8_file: Converted) -> None:
    assert litert.load(float_file.path).input.shape == (3, 32, 32)
    assert litert.load(float_file.path).input.range is None
    assert litert.load(float_file.path).input.labels is None
    assert litert.load(int8_file.path).input.labels == tuple("abcdefghij")


def test_normalisation_is_folded_in_and_keeps_the_sparse_kernels(
    tiny: nn.Module, tmp_path: Path, images: torch.Tensor
) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3)).float()
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    wanted = tiny((pixels / 255 - mean) / std)
    made = litert.convert(
        tiny, images[:1], tmp_path / "pixels.tflite", normalization=IMAGENET, metadata={"recipe": "small"}
    )
    model = litert.load(made.path)
    assert model.input.range == (0.0, 255.0)
    assert relative_error(model.predict(pixels.numpy()), wanted) < TOLERANCE
    assert litert.lint(made.path).sparse
    content = metadata.read(read_file(made.path))
    assert content["metadata"] == {"recipe": "small"}
    assert content["input"]["mean"] == list(IMAGENET.mean)


def test_an_app_that_normalises_itself_is_told_how(
    tiny: nn.Module, tmp_path: Path, images: torch.Tensor, float_file: Converted
) -> None:
    made = litert.convert(
        tiny, images[:1], tmp_path / "told.tflite", normalization=IMAGENET, fold_normalization=False
    )
    model = litert.load(made.path)
    assert model.input.range is None
    assert model.input.normalization == IMAGENET
    assert litert.load(float_file.path).input.normalization is None
    assert np.array_equal(model.predict(images.numpy()), litert.load(float_file.path).predict(images.numpy()))


@pytest.mark.parametrize(
    "wrong", [{"mean": [0.5]}, {"std": [1, 0, 1]}, {"std": None}, {"mean": ["a", "b", "c"]}, {"range": 3}]
)
def test_a_normalisation_that_makes_no_sense_counts_as_not_there(
    float_file: Converted, wrong: dict[str, Any]
) -> None:
    graph = read_file(float_file.path)
    content = metadata.describe((3, 32, 32), None, IMAGENET, False, None)
    content["input"] |= wrong
    metadata.write(graph, content)
    assert metadata.input_spec(graph, (3, 32, 32)).normalization is None


def test_the_same_model_gives_the_same_bytes(
    float_file: Converted, tiny: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    again = litert.convert(tiny, images[:1], tmp_path / "again.tflite")
    assert digest(again.path) == digest(float_file.path)
    after = tiny.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "the model was modified"
    assert not tiny.training


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def calibration() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((32, 3, 32, 32)).astype(np.float32)


def test_static_int8_keeps_the_biases_of_empty_channels(tmp_path: Path) -> None:
    """The quantiser alone cuts them off: what pruned channels give, a constant, is then lost."""
    torch.manual_seed(0)
    pruned = nn.Conv2d(8, 32, 1)
    pruned.weight.data[::2] = 0
    pruned.bias.data.uniform_(0.5, 2)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), pruned, *head).eval()
    pixels = torch.rand(16, 3, 16, 16)
    made = litert.convert(
        *(model, pixels[:1], tmp_path / "static.tflite"),
        target="litert-arm64-static-int8",
        calibration=pixels.numpy(),
    )
    with torch.no_grad():
        wanted = model(pixels)
    assert relative_error(litert.load(made.path).predict(pixels.numpy()), wanted) < 0.03


def test_static_int8_computes_in_integers(
    tiny: nn.Module, images: torch.Tensor, lowered: bytes, calibration: np.ndarray, tmp_path: Path
) -> None:
    made = litert.convert(
        *(tiny, images[:1], tmp_path / "static.tflite"),
        target="litert-arm64-static-int8",
        lowered=lowered,
        calibration=calibration,
        labels=list("abcdefghij"),
    )
    graph = read_file(made.path)
    convolutions = [op for op in graph.ops if graph.op_name(op) in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    assert {graph.type_name(int(t)) for op in convolutions for t in (*op.inputs[:2], *op.outputs)} == {"INT8"}
    assert {layer.encoding for layer in made.layers} == {"int8"}
    assert made.bytes < 0.5 * len(lowered)
    model = litert.load(made.path)
    assert model.input.labels == tuple("abcdefghij")
    assert relative_error(model.predict(images.numpy()), tiny(images)) < 0.2
    assert not litert.lint(made.path).sparse


class Pooled(nn.Module):
    """Ends its sparse part in a pooling op: sparse kernels would compute nonsense from it."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny()
        self.head = nn.Conv2d(64, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tiny = self.tiny
        x = tiny.depthwise(tiny.expand(tiny.stem(x)))
        x = x * torch.sigmoid(tiny.excite(torch.relu(tiny.squeeze(x.mean((2, 3), keepdim=True)))))
        x = nn.functional.max_pool2d(self.head(x), 2)
        result: torch.Tensor = tiny.classifier(x.mean((2, 3)))
        return result


def test_a_network_that_would_come_out_wrong_is_kept_dense(images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(Pooled())
    zero_blocks(model, 0.8)
    made = litert.convert(model, images[:1], tmp_path / "pooled.tflite")
    verdict = litert.lint(made.path)
    assert not verdict.sparse
    assert "leak" not in {problem.rule for problem in verdict.problems}
    assert any(layer.encoding.startswith("sparse") for layer in made.layers)
    assert relative_error(litert.load(made.path).predict(images.numpy()), model(images)) < TOLERANCE


@pytest.fixture(scope="module")
def large() -> tuple[nn.Module, torch.Tensor, bytes]:
    torch.manual_seed(0)
    model = settled(torchvision.models.mobilenet_v3_large(weights=None))
    zero_blocks(model, 0.8)
    example = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(4))
    return model, example, litert.lower(model, example)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "most", "tolerance"), [("litert-arm64", 0.25, TOLERANCE), ("litert-arm64-int8", 0.14, 0.05)]
)
def test_mobilenet_v3_large_is_small_right_and_sparse(
    large: tuple[nn.Module, torch.Tensor, bytes], target: str, most: float, tolerance: float, tmp_path: Path
) -> None:
    model, example, lowered = large
    made = litert.convert(model, example, tmp_path / "large.tflite", target=target, lowered=lowered)
    assert made.bytes <= most * len(lowered)
    assert len(made.layers) == 64
    modules = dict(model.named_modules())
    for layer in made.layers:
        assert layer.shape == tuple(modules[layer.name].weight.shape)
        if layer.kind in ("conv1x1", "linear"):
            assert layer.zero_fraction >= 0.79
    assert relative_error(litert.load(made.path).predict(example.numpy()), model(example)) < tolerance
    assert litert.lint(made.path).sparse


class TwoOutputs(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "training mode": ({"model": Tiny()}, r"in training mode \(Tiny\): call model\.eval\(\)"),
    "batch of two": ({"example": torch.zeros(2, 3, 32, 32)}, r"\(2, 3, 32, 32\), expected \(1, channels"),
    "wrong dtype": (
        {"example": torch.zeros(1, 3, 32, 32, dtype=torch.float64)},
        "torch.float64, expected torch.float32",
    ),
    "no such folder": ({"path": "nowhere/x.tflite"}, "no such folder"),
    "wrong suffix": ({"path": "x.onnx"}, r"must end in \.tflite"),
    "unknown target": ({"target": "litert-mars"}, "unknown target 'litert-mars': choose from litert-arm64"),
    "another format's target": ({"target": "coreml-ios16"}, "unknown target 'coreml-ios16'"),
    "zero std": ({"normalization": Normalization((0, 0, 0), (1, 0, 1))}, "every value must be above 0"),
    "too few labels": ({"labels": ["a"]}, "1 labels for a model of 10 classes"),
    "no calibration": ({"target": "litert-arm64-static-int8"}, r"needs calibration images: \(n, 3, 32, 32\)"),
    "calibration of another size": (
        {"target": "litert-arm64-static-int8", "calibration": np.zeros((9, 3, 8, 8), np.float32)},
        r"must be \(n, 3, 32, 32\), n at least 8",
    ),
    "two outputs": ({"model": TwoOutputs().eval()}, r"returns 2 outputs \(0: \(1, 10\), 1: .*wrap the model"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused(
    changes: dict[str, Any], message: str, tiny: nn.Module, tmp_path: Path, images: torch.Tensor
) -> None:
    arguments: dict[str, Any] = {
        "model": tiny,
        "example": images[:1],
        "path": "x.tflite",
        "target": "litert-web",
    }
    arguments |= changes
    model, example, path = (arguments.pop(name) for name in ("model", "example", "path"))
    with pytest.raises(UserError, match=message):
        litert.convert(model, example, tmp_path / path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_leaves_nothing(
    tiny: nn.Module, images: torch.Tensor, lowered: bytes, tmp_path: Path
) -> None:
    (tmp_path / "taken.tflite").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*taken\.tflite"):
        litert.convert(tiny, images[:1], tmp_path / "taken.tflite", lowered=lowered)
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.tflite"]


def test_what_litert_torch_cannot_convert_is_its_own_error(tmp_path: Path) -> None:
    class Odd(Tiny):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if bool(x.sum() > 0) else super().forward(-x)

    with pytest.raises(ToolError, match="litert-torch cannot convert Odd"):
        litert.convert(Odd().eval(), torch.zeros(1, 3, 32, 32), tmp_path / "x.tflite")


class Cancelling(nn.Module):
    """Large values that cancel: float32 keeps two digits of the rest."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)
        self.far = nn.Parameter(torch.full((1, 16, 1, 1), 1e5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(torch.relu(torch.relu(self.conv(x)) + self.far) - self.far)
        result: torch.Tensor = self.head(x).mean((2, 3))
        return result


def test_a_file_is_allowed_what_float32_does_to_its_numbers_and_no_more(tmp_path: Path) -> None:
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    model, other = Cancelling(0).eval(), Cancelling(1).eval()
    path = tmp_path / "file.tflite"
    litert.convert(model, image, path, target="litert-arm64-int8")
    graph, of = read_file(path), agreement.probe(model, image, None)
    exact = checking.references(graph, of.fed)
    error = agreement.worst(checking.outputs_of(path.read_bytes(), graph, of.fed, ""), exact)
    assert agreement.TOLERANCE < error < checking.tolerance(graph, of.fed, exact, error) < 0.1
    litert.convert(other, image, tmp_path / "other.tflite", target="litert-arm64-int8")
    wrong = (tmp_path / "other.tflite").read_bytes()
    with pytest.raises(ToolError, match="LiteRT here does not compute what the file says: off by"):
        checking.check_runs_as_stored(graph, wrong, of, False, "file.tflite")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32, 3), (1, 3, 31, 32)])
def test_images_of_another_shape_are_refused(float_file: Converted, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"takes images of \(n, 3, 32, 32\)"):
        litert.load(float_file.path).predict(np.zeros(shape, np.float32))


def test_no_images_give_no_rows(float_file: Converted) -> None:
    assert litert.load(float_file.path).predict(np.zeros((0, 3, 32, 32), np.float32)).shape == (0, 10)


def test_loading_prints_nothing(float_file: Converted) -> None:
    code = f"from converters import litert; litert.load({str(float_file.path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_the_package_brings_no_framework() -> None:
    code = "import sys; from converters import litert; print({'torch', 'numpy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_public_names() -> None:
    assert litert.__all__ == [
        *("Inspection", "Lint", "LitertModel", "Problem", "add_task_metadata"),
        *("convert", "inspect", "lint", "load", "lower"),
    ]
    for name in litert.__all__:
        assert getattr(litert, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        _ = litert.optimise


class Maps(nn.Module):
    """Names one of three classes for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, 3, h, w)."""
        coarse = self.features(images)
        return nn.functional.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)


def test_maps_come_out_as_torch_gives_them_and_lie_in_the_file_with_classes_last(tmp_path):
    torch.manual_seed(0)
    model, images = Maps().eval(), torch.rand(2, 3, 16, 24)
    path = tmp_path / "maps.tflite"
    litert.convert(model, images[:1], path, labels=["sky", "road", "car"])
    graph = read_file(path)
    assert graph.shape(int(graph.subgraph.outputs[0])) == (1, 16, 24, 3)
    loaded = litert.load(path)
    with torch.no_grad():
        np.testing.assert_allclose(loaded.predict(images.numpy()), model(images), atol=1e-5)
    assert loaded.input.labels == ("sky", "road", "car")
    with pytest.raises(UserError, match="2 labels for a model of 3 classes"):
        litert.convert(model, images[:1], path, labels=["sky", "road"])


class Star(nn.Module):
    """Two branches of the same shape, multiplied, as in StarNet; then a gate spread over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.g = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(32, 16, 1)
        # Made in the other order than they run.
        self.f2, self.f1 = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 32, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        x = self.g(nn.functional.relu6(self.f1(x)) * self.f2(x))
        return (x * x.mean((2, 3), keepdim=True).expand_as(x)).mean((2, 3))


@pytest.mark.parametrize("target", ["litert-arm64", "litert-arm64-int8"])
def test_layers_of_the_same_shape_keep_their_names(tmp_path: Path, target: str) -> None:
    torch.manual_seed(0)
    model = Star().eval()
    example = torch.zeros(1, 3, 16, 16)
    litert.convert(model, example, tmp_path / "m.tflite", target=target)
    graph = read_file(tmp_path / "m.tflite")
    # A converter may change the order: the values decide.
    name_weights(graph, weighted_layers(model, example)[::-1])
    found = {graph.name(int(op.inputs[1])): (graph.op_name(op), tensor) for op, tensor in weights(graph)}
    assert set(found) == {"stem", "f1", "f2", "g"}
    for name, (kind, tensor) in found.items():
        weight = model.get_submodule(name).weight.detach().numpy()
        stored = torch_layout(kind, dequantized(graph, tensor))
        assert np.abs(stored - weight).max() <= np.abs(weight).max() / 127
