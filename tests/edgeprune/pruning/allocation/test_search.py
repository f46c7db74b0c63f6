"""Predicted sizes and budgets against the bytes on disk, for MobileNetV3-Small with 1000 classes."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from converters import coreai, coreml, litert
from converters.layers import weighted_layers
from converters.litert.conversion import name_weights
from converters.litert.graph import read, weights
from converters.sizes import SizeModel, calibrated
from edgeprune.pruning import Block, OneShot, Sparsifier, Unstructured
from edgeprune.pruning.allocation.limits import to_budget
from edgeprune.pruning.allocation.result import Allocation
from edgeprune.pruning.allocation.shares import by_importance, erdos_renyi, uniform

EXAMPLE = torch.zeros(1, 3, 32, 32)
COREML = ("coreml-ios18", "coreml-ios18-int8")


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return mobilenet_v3_small(weights=None).eval()


@pytest.fixture(scope="module")
def lowered(dense: nn.Module) -> bytes:
    return litert.lower(dense, EXAMPLE)


def pruned(model: nn.Module, allocation: Allocation) -> nn.Module:
    model = copy.deepcopy(model)
    achieved = Sparsifier(model, allocation.rules, OneShot()).finalize()
    assert achieved == {name: pytest.approx(s) for name, s in allocation.sparsities.items() if s > 0}
    return model


def predicted(sizes: SizeModel, allocation: Allocation) -> int:
    sparsities = np.array([allocation.sparsities.get(layer.name, 0.0) for layer in sizes.layers])
    pattern = allocation.pattern
    block = (pattern.out, pattern.in_) if isinstance(pattern, Block) else (1, 1)
    return int(sizes.bytes(sizes.counts * (1 - sparsities), block))


def lowered_again(lowered: bytes, model: nn.Module) -> bytes:
    """What lowering the pruned model gives, in no time: folding batch norms moves no zeros."""
    graph = read(lowered)
    name_weights(graph, weighted_layers(model, EXAMPLE))
    layers = dict(model.named_modules())
    for _, tensor in list(weights(graph)):
        values = graph.constant(tensor)
        weight = layers[graph.name(tensor)].weight.detach().numpy()
        if values.size == weight.shape[0] * weight.shape[1]:  # Only 1x1 and linear layers are pruned here.
            values = np.where(weight.reshape(values.shape) != 0, values, np.float32(0))
            buffer = graph.model.buffers[graph.tensors[tensor].buffer]
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    return graph.to_bytes()


@pytest.mark.parametrize("target", ["litert-arm64", "litert-arm64-int8"])
def test_litert_files_have_the_predicted_size(dense, lowered, tmp_path: Path, target: str):
    path = tmp_path / "file.tflite"
    sizes = calibrated(litert.convert(dense, EXAMPLE, path, target=target, lowered=lowered))
    for allocation in (
        uniform(dense, Block(1, 4), 0.8),
        erdos_renyi(dense, Block(1, 4), 0.7),
        by_importance(dense, Unstructured(), 0.85),
        uniform(dense, Unstructured(), 0.4),
    ):
        model = pruned(dense, allocation)
        file = litert.convert(model, EXAMPLE, path, target=target, lowered=lowered_again(lowered, model))
        assert predicted(sizes, allocation) == pytest.approx(file.bytes, rel=0.01)


@pytest.mark.parametrize("pattern", [Block(1, 4), Unstructured()], ids=str)
def test_a_litert_file_meets_its_budget(dense, lowered, tmp_path: Path, pattern):
    target, budget, path = "litert-arm64-int8", 1_000_000, tmp_path / "file.tflite"
    sizes = calibrated(litert.convert(dense, EXAMPLE, path, target=target, lowered=lowered))
    allocation = to_budget(dense, pattern, {target: budget}, {target: sizes})
    model = pruned(dense, allocation)
    litert.convert(model, EXAMPLE, path, target=target, lowered=lowered_again(lowered, model))
    assert 0.95 * budget <= path.stat().st_size <= budget
    assert allocation.bytes[target] == pytest.approx(path.stat().st_size, rel=0.01)


@pytest.mark.slow
def test_a_core_ml_package_meets_its_budget(dense, tmp_path: Path):
    """And the package of another target has the size that is predicted for it."""
    target, budget = "coreml-ios18-int8", 800_000
    files = {t: tmp_path / f"{t}.mlpackage" for t in COREML}
    sizes = {t: calibrated(c) for t, c in coreml.convert_all(dense, EXAMPLE, files).items()}
    allocation = to_budget(dense, Block(1, 4), {target: budget}, sizes)
    real = {t: c.bytes for t, c in coreml.convert_all(pruned(dense, allocation), EXAMPLE, files).items()}
    assert 0.95 * budget <= real[target] <= budget
    assert sum(f.stat().st_size for f in files[target].rglob("*") if f.is_file()) == real[target]
    for t in COREML:
        assert predicted(sizes[t], allocation) == pytest.approx(real[t], rel=0.01)


@pytest.mark.coreai
@pytest.mark.parametrize(
    ("target", "budget"),
    [("coreai-ios27", 1_900_000), ("coreai-ios27-int8", 1_000_000), ("coreai-ios27-4bit", 800_000)],
)
def test_a_core_ai_model_meets_its_budget(dense, tmp_path: Path, target: str, budget: int):
    if importlib.util.find_spec("coreai") is None:
        pytest.skip("Core AI is an extra: make test-coreai")
    path = tmp_path / "model.aimodel"
    sizes = {target: calibrated(coreai.convert(dense, EXAMPLE, path, target=target))}
    allocation = to_budget(dense, Block(1, 4), {target: budget}, sizes)
    file = coreai.convert(pruned(dense, allocation), EXAMPLE, path, target=target)
    assert 0.95 * budget <= file.bytes <= budget
    assert predicted(sizes[target], allocation) == pytest.approx(file.bytes, rel=0.01)
