"""Predicted sizes against the bytes on disk, and the rules of encoding against those of the writers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from converters import coreml, litert
from converters.coreml import compression
from converters.errors import UserError
from converters.facts import Converted, LayerFacts
from converters.layers import WeightedLayer, kind_of
from converters.litert import sparse, storage
from converters.litert.conversion import name_weights, weighted_layers
from converters.litert.graph import read, weights
from converters.sizes import (
    COREML_ENCODED_BYTES,
    COREML_IOS16_INT8_BYTES,
    COREML_JOINT_BYTES,
    COREML_SPARSE_BYTES,
    LITERT_SPARSE_BYTES,
    MIN_LITERT_INT8_VALUES,
    SizeModel,
    calibrated,
)
from converters.targets import TARGETS, Format, Storage

PIXELS = 32


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return mobilenet_v3_small(weights=None).eval()


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.zeros(1, 3, PIXELS, PIXELS)


@pytest.fixture(scope="module")
def lowered(dense: nn.Module, example: torch.Tensor) -> bytes:
    return litert.lower(dense, example)


def masks(model: nn.Module, sparsities: list[float], block: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A mask for each 1x1 and linear layer, blocks of so many input channels zeroed at random."""
    random = np.random.default_rng(seed)
    found = {}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    prunable = [(n, m) for n, m in layers if kind_of(m) in ("conv1x1", "linear")]
    for index, (name, module) in enumerate(prunable):
        shape = tuple(module.weight.shape)
        units = np.ones(shape[0] * shape[1] // block, bool)
        zeros = round(sparsities[index % len(sparsities)] * len(units))
        units[random.permutation(len(units))[:zeros]] = False
        found[name] = np.repeat(units, block).reshape(shape)
    return found


def kept_of(model: SizeModel, chosen: dict[str, np.ndarray]) -> np.ndarray:
    counts = [chosen[x.name].sum() if x.name in chosen else np.prod(x.shape) for x in model.layers]
    return np.array(counts, dtype=float)


def with_zeros(
    lowered: bytes, model: nn.Module, example: torch.Tensor, chosen: dict[str, np.ndarray]
) -> bytes:
    """The lowered graph of the masked model, without lowering it again: batch norms move no zeros."""
    graph = read(lowered)
    name_weights(graph, weighted_layers(model, example))
    for _, tensor in list(weights(graph)):
        if graph.name(tensor) in chosen:
            values = graph.constant(tensor)
            mask = chosen[graph.name(tensor)].reshape(values.shape)
            graph.model.buffers[graph.tensors[tensor].buffer].data = np.frombuffer(
                np.where(mask, values, np.float32(0)).tobytes(), np.uint8
            )
    return graph.to_bytes()


ASSIGNMENTS = [([0.8], 4), ([0.95, 0.3, 0.6, 0.0], 4), ([0.9, 0.5, 0.72], 1), ([0.4], 1)]


@pytest.mark.parametrize("target", ["litert-arm64", "litert-arm64-int8"])
def test_litert_files_have_the_predicted_size(
    dense: nn.Module, example: torch.Tensor, lowered: bytes, tmp_path: Path, target: str
):
    path = tmp_path / "file.tflite"
    model = calibrated(litert.convert(dense, example, path, target=target, lowered=lowered))
    for sparsities, block in ASSIGNMENTS:
        chosen = masks(dense, sparsities, block)
        changed = with_zeros(lowered, dense, example, chosen)
        real = litert.convert(dense, example, path, target=target, lowered=changed).bytes
        assert int(model.bytes(kept_of(model, chosen), (1, block))) == pytest.approx(real, rel=0.01)


def test_coreml_files_have_the_predicted_size(dense: nn.Module, example: torch.Tensor, tmp_path: Path):
    targets = ("coreml-ios18", "coreml-ios18-int8")
    chosen = masks(dense, [0.95, 0.3, 0.6, 0.8], 4)
    masked = copy.deepcopy(dense)
    for name, mask in chosen.items():
        masked.get_submodule(name).weight.data *= torch.from_numpy(mask)
    before, after = (
        coreml.convert_all(m, example, {t: tmp_path / f"{n}-{t}.mlpackage" for t in targets})
        for n, m in (("dense", dense), ("masked", masked))
    )
    for target in targets:
        model = calibrated(before[target])
        predicted = int(model.bytes(kept_of(model, chosen), (1, 4)))
        assert predicted == pytest.approx(after[target].bytes, rel=0.01)


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.format is Format.COREML], ids=str)
def test_coreml_encodings_are_chosen_as_the_writer_chooses_them(target):
    random = np.random.default_rng(0)
    joint = target.platform == "iOS18"
    for _ in range(300):
        shape = (int(random.integers(1, 70)), int(random.integers(1, 70)))
        kind = str(random.choice(["conv1x1", "depthwise"]))
        count = shape[0] * shape[1]
        zeros = int(random.integers(0, count + 1))
        statistics = compression.WeightStatistics(count, zeros, shape[0])
        wanted = target.storage
        if kind == "depthwise" and wanted in compression.TABLE_BITS:
            wanted = Storage.INT8
        encoding = compression.smallest_encoding(wanted, joint, statistics)
        beside = {
            (True, True): COREML_SPARSE_BYTES,
            (True, False): COREML_JOINT_BYTES,
            (False, True): 0,
            (False, False): COREML_ENCODED_BYTES,
        }[encoding.sparse, encoding.storage is Storage.FLOAT16]
        if beside == COREML_ENCODED_BYTES and encoding.storage is Storage.INT8 and not joint:
            beside = COREML_IOS16_INT8_BYTES + compression.blob_bytes(shape[0], 8)
        model = SizeModel(target, (WeightedLayer("layer", kind, shape),), 0)
        assert int(model.bytes([count - zeros])) == compression.encoded_bytes(encoding, statistics) + beside


@pytest.mark.parametrize("block", [(1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("kind", [Storage.FLOAT32, Storage.INT8])
def test_litert_weights_are_encoded_as_the_writer_encodes_them(block, kind):
    random = np.random.default_rng(0)
    target = TARGETS["litert-arm64-int8" if kind is Storage.INT8 else "litert-arm64"]
    assert storage.MIN_INT8_VALUES == MIN_LITERT_INT8_VALUES
    encoded = 0
    for _ in range(100):
        out, in_ = 4 * int(random.integers(8, 24)), 4 * int(random.integers(8, 400))
        units = random.random((out // block[0], in_ // block[1])) > random.random()
        mask = np.repeat(np.repeat(units, block[0], 0), block[1], 1)
        weight = mask.astype(np.int8 if kind is Storage.INT8 else np.float32)
        found = sparse.smallest(weight)
        expected = weight.nbytes
        if found is not None:
            values, layout = found
            encoded += 1
            expected = values.nbytes + layout.index_bytes + LITERT_SPARSE_BYTES + len("layer")
        model = SizeModel(target, (WeightedLayer("layer", "linear", (out, in_)),), 0)
        assert int(model.bytes([mask.sum()], block)) == pytest.approx(
            expected, rel=0.002 if block[0] < 4 else 0
        )
    assert encoded > 20


def test_a_thousand_choices_at_once():
    layers = tuple(WeightedLayer(str(i), "linear", (64, 8 * i)) for i in range(1, 51))
    for target in ("coreml-ios18-int8", "litert-arm64-int8"):
        model = SizeModel(TARGETS[target], layers, 1000)
        kept = np.random.default_rng(0).random((1000, 50)) * model.counts
        many = model.bytes(kept, (1, 4))
        assert many.shape == (1000,)
        assert [int(model.bytes(row, (1, 4))) for row in kept[:5]] == many[:5].tolist()
        assert bool((model.bytes(model.counts * 0.3) < model.bytes(model.counts * 0.9)).all())


def test_what_cannot_be_predicted_is_refused():
    fact = LayerFacts("a", "linear", (4, 4), 0.0, 8.0, "int8")
    with pytest.raises(UserError, match="its weights are stored dense, so zeros do not change its size"):
        calibrated(Converted(Path("x.tflite"), "litert-arm64-static-int8", 100, (fact,)))
    model = calibrated(Converted(Path("x.tflite"), "litert-arm64", 100, (fact,)))
    with pytest.raises(UserError, match="kept counts of shape \\(2,\\) for 1 layers"):
        model.bytes([1, 2])
