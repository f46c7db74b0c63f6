"""The rules of encoding against those of the writers; `test_file_sizes.py` has whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.coreml import compression
from converters.coreml import sizes as coreml_sizes
from converters.errors import UserError
from converters.facts import Converted, LayerFacts
from converters.layers import WeightedLayer
from converters.litert import sizes as litert_sizes
from converters.litert import sparse, storage
from converters.sizes import SizeModel, calibrated
from converters.targets import TARGETS, Storage


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.format == "coreml"], ids=str)
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
            (True, True): coreml_sizes.SPARSE_BYTES,
            (True, False): coreml_sizes.JOINT_BYTES,
            (False, True): 0,
            (False, False): coreml_sizes.ENCODED_BYTES,
        }[encoding.sparse, encoding.storage is Storage.FLOAT16]
        if beside == coreml_sizes.ENCODED_BYTES and encoding.storage is Storage.INT8 and not joint:
            beside = coreml_sizes.IOS16_INT8_BYTES + compression.blob_bytes(shape[0], 8)
        model = SizeModel(target, (WeightedLayer("layer", kind, shape),), 0)
        assert int(model.bytes([count - zeros])) == compression.encoded_bytes(encoding, statistics) + beside


@pytest.mark.parametrize("block", [(1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("kind", [Storage.FLOAT32, Storage.INT8])
def test_litert_weights_are_encoded_as_the_writer_encodes_them(block, kind):
    random = np.random.default_rng(0)
    target = TARGETS["litert-arm64-int8" if kind is Storage.INT8 else "litert-arm64"]
    assert storage.MIN_INT8_VALUES == litert_sizes.MIN_INT8_VALUES
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
            expected = values.nbytes + layout.index_bytes + litert_sizes.SPARSE_BYTES + len("layer")
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
    stored = LayerFacts("a", "linear", (4, 4), 0.5, 8.0, "sparse int8")
    with pytest.raises(UserError, match="layer 'a' is stored sparse already: calibrate with the dense model"):
        calibrated(Converted(Path("x.tflite"), "litert-arm64", 100, (stored,)))
    with pytest.raises(UserError, match="kept counts of shape \\(2,\\) for 1 layers"):
        model.bytes([1, 2])
