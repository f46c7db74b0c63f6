"""The pure parts: which encoding is smallest, lookup tables, packed bits, the Neural Engine's blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.coreml.blobs import ELEMENT_TYPES, MalformedError, blob_bytes, read_blob, unpack
from converters.coreml.compression import Encoding, WeightStatistics, encoded_bytes, smallest_encoding
from converters.coreml.constexpr import Constant, decode
from converters.coreml.neural_engine import output_block
from converters.tables import cluster, look_up_table
from converters.targets import Storage


@pytest.mark.parametrize(
    ("zeros", "storage", "joint", "expected"),
    [
        (0.00, Storage.FLOAT16, False, "float16"),
        (0.06, Storage.FLOAT16, False, "float16"),  # a mask bit is 1/16 of a value
        (0.07, Storage.FLOAT16, False, "sparse float16"),
        (0.40, Storage.INT8, False, "int8"),  # 16 * 0.6 + 1 = 10.6 bits
        (0.75, Storage.INT8, False, "sparse float16"),  # 5 bits
        (0.12, Storage.INT8, True, "int8"),
        (0.13, Storage.INT8, True, "sparse int8"),
        (0.75, Storage.TABLE4, False, "4-bit table"),
        (0.90, Storage.TABLE4, False, "sparse float16"),  # 2.6 bits
        (0.24, Storage.TABLE4, True, "4-bit table"),
        (0.26, Storage.TABLE4, True, "sparse 4-bit table"),
        (0.16, Storage.TABLE6, True, "6-bit table"),
        (0.17, Storage.TABLE6, True, "sparse 6-bit table"),
        (1.00, Storage.FLOAT16, True, "float16"),
    ],
)
def test_smallest_encoding_of_a_large_weight(
    zeros: float, storage: Storage, joint: bool, expected: str
) -> None:
    weight = WeightStatistics(count=1_000_000, zeros=round(zeros * 1_000_000), channels=1000)
    assert smallest_encoding(storage, joint, weight).name == expected


def test_small_weights_stay_plain() -> None:
    assert smallest_encoding(Storage.INT8, True, WeightStatistics(9, 6, 3)).name == "float16"
    assert smallest_encoding(Storage.INT8, True, WeightStatistics(32, 24, 8)).name == "float16"
    # 9 values left are too few for a blob of their own
    assert smallest_encoding(Storage.INT8, True, WeightStatistics(4096, 4087, 64)).name == "sparse float16"


def test_bytes_count_records_and_padding() -> None:
    weight = WeightStatistics(count=1000, zeros=750, channels=10)
    assert blob_bytes(1, 8) == 128
    assert blob_bytes(64, 8) == 128
    assert blob_bytes(65, 8) == 192
    assert encoded_bytes(Encoding(Storage.FLOAT16, sparse=False), weight) == 64 + 2048
    assert encoded_bytes(Encoding(Storage.FLOAT16, sparse=True), weight) == (64 + 128) + (64 + 512)
    assert encoded_bytes(Encoding(Storage.INT8, sparse=True), weight) == (64 + 128) + (64 + 256) + 128
    assert encoded_bytes(Encoding(Storage.TABLE4, sparse=True), weight) == (64 + 128) + (64 + 128) + 128


def test_clusters_of_separated_values_are_their_means() -> None:
    values = np.array([-5.0, -4.9, 0.1, 0.2, 7.0])
    counts = np.array([1, 3, 2, 2, 1])
    assert np.allclose(cluster(values, counts, 3), [(-5.0 - 3 * 4.9) / 4, 0.15, 7.0])
    assert np.array_equal(cluster(values, counts, 8), values)


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([2, 4, 6]), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_tables_take_the_nearest_entry_and_keep_zeros(seed: int, size: int, bits: int, zeros: float) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal(size).astype(np.float16)
    weight[random.random(size) < zeros] = 0
    table, indices = look_up_table(weight, bits, zeros_left_out=False)
    assert table.shape == (2**bits,)
    assert table.dtype == np.float16
    decoded = table[indices]
    assert (decoded[weight == 0] == 0).all()
    used = table[np.unique(indices)].astype(np.float64)
    nearest = np.abs(weight.astype(np.float64)[:, None] - used).min(1)
    assert np.allclose(np.abs(decoded.astype(np.float64) - weight.astype(np.float64)), nearest, atol=1e-12)


def test_a_table_of_all_values_is_exact() -> None:
    weight = np.array([[0.5, -0.25], [0.0, 0.5]], np.float16)
    table, indices = look_up_table(weight, 2, zeros_left_out=False)
    assert np.array_equal(table[indices].reshape(2, 2), weight)


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("count", [300, 3000])
def test_a_table_is_nearly_the_best_there_is(count: int, size: int) -> None:
    """Rows of very different size, as in early layers: Lloyd's algorithm alone leaves several times that."""
    random = np.random.default_rng(count)
    rows = random.normal(size=(count // 10, 10)) * np.exp(1.2 * random.normal(size=(count // 10, 1)))
    values = np.unique(rows)
    entries = cluster(values, np.ones(len(values), int), size)
    found = np.abs(values[:, None] - entries).min(axis=1)
    assert size - 1 <= len(entries) <= size
    assert (found**2).sum() <= 1.1 * least_squares_of_runs(values, size)


def least_squares_of_runs(values: np.ndarray, size: int) -> float:
    """The least sum of squares of any table, by dynamic programming over every value."""
    total, square = np.cumsum([0.0, *values]), np.cumsum([0.0, *values**2])
    least = np.full(len(values) + 1, np.inf)
    least[0] = 0.0
    for _ in range(size):
        shorter, least = least, np.full(len(values) + 1, np.inf)
        for end in range(1, len(values) + 1):
            counts = end - np.arange(end)
            within = square[end] - square[:end] - (total[end] - total[:end]) ** 2 / counts
            least[end] = (shorter[:end] + within).min()
    return float(least[-1])


def test_clustering_is_better_than_even_steps() -> None:
    weight = np.random.default_rng(0).standard_normal(20_000).astype(np.float16)
    table, indices = look_up_table(weight, 4, zeros_left_out=True)
    error = np.mean((table[indices].astype(np.float64) - weight) ** 2)
    step = (float(weight.max()) - float(weight.min())) / 15
    assert error < step**2 / 12 / 2
    assert error < 0.0105  # the best table of 16 for a normal distribution has 0.0095 (Max, 1960)


@pytest.mark.parametrize("name", ["UINT1", "UINT2", "UINT3", "UINT4", "UINT6", "INT4"])
def test_packed_bits_read_back(name: str) -> None:
    element = ELEMENT_TYPES[name]
    values = np.random.default_rng(0).integers(0, 2**element.bits, 37)
    stream = ((values[:, None] >> np.arange(element.bits)) & 1).reshape(-1).astype(np.uint8)
    raw = np.packbits(stream, bitorder="little").tobytes()
    expected = np.where(values >= 8, values - 16, values) if name == "INT4" else values
    assert np.array_equal(unpack(raw, element, (37,)), expected)
    with pytest.raises(MalformedError, match="needs"):
        unpack(raw + b"\0", element, (37,))


@pytest.mark.parametrize("name", ["uint1", "uint3", "uint4", "uint6", "fp16", "int8"])
def test_blobs_are_read_as_coremltools_writes_them(name: str, tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter as Writer

    file = tmp_path / "weight.bin"
    writer = Writer(str(file))
    random = np.random.default_rng(0)
    if name == "fp16":
        element, values = ELEMENT_TYPES["FLOAT16"], random.standard_normal(37).astype(np.float16)
        offset = writer.write_fp16_data(values.view(np.uint16))
    elif name == "int8":
        element, values = ELEMENT_TYPES["INT8"], random.integers(-128, 128, 37).astype(np.int8)
        offset = writer.write_int8_data(values)
    else:
        element = ELEMENT_TYPES[name.upper()]
        values = random.integers(0, 2**element.bits, 37).astype(np.uint8)
        offset = getattr(writer, f"write_{name}_data")(values)
    del writer
    assert np.array_equal(read_blob(file.read_bytes(), offset, element, (37,)), values)


def stored(values: object, dtype: str = "float16", name: str = "FLOAT16") -> Constant:
    array = np.array(values, dtype)
    return Constant(
        array, ELEMENT_TYPES[name].name, array.size * ELEMENT_TYPES[name].bits, ELEMENT_TYPES[name]
    )


def test_the_encodings_decode_as_documented() -> None:
    mask = stored([[1, 0, 0], [0, 1, 1]], "u1", "UINT1")
    (sparse,) = decode("constexpr_sparse_to_dense", {"mask": mask, "nonzero_data": stored([1, 2, 3])})
    assert sparse.value.tolist() == [[1, 0, 0], [0, 2, 3]]
    assert (sparse.encoding, sparse.bits) == ("sparse float16", 6 + 48)

    packed = stored([0b110001], "u1", "UINT8")
    shape = stored([2, 3], "u4", "UINT32")
    (older,) = decode(
        "constexpr_sparse_to_dense", {"mask": packed, "nonzero_data": stored([1, 2, 3]), "shape": shape}
    )
    assert older.value.tolist() == sparse.value.tolist()

    scale = stored([[0.5], [2.0]])
    same_mask, values = decode(
        "constexpr_sparse_blockwise_shift_scale",
        {"data_mask": mask, "nonzero_data": stored([10, 20, 30], "i1", "INT8"), "scale": scale},
    )
    assert same_mask is mask
    assert values.value.tolist() == [5, 40, 60]
    assert (values.encoding, values.bits) == ("int8", 24 + 32)

    (dense,) = decode(
        "constexpr_blockwise_shift_scale",
        {
            "data": stored([[1, 2, 3, 4]], "i1", "INT8"),
            "scale": stored([[1, 10]]),
            "offset": stored([[1, 0]]),
        },
    )
    assert dense.value.tolist() == [[0, 1, 30, 40]]

    (by_axis,) = decode(
        "constexpr_affine_dequantize",
        {
            "quantized_data": stored([[1, 2], [3, 4]], "i1", "INT8"),
            "zero_point": stored([0, 1], "i1", "INT8"),
            "scale": stored([2, 3]),
            "axis": stored(1, "i4", "INT32"),
        },
    )
    assert by_axis.value.tolist() == [[2, 3], [6, 9]]

    table = stored(np.array([10, 20, 30, 40, 1, 2, 3, 4]).reshape(2, 1, 4, 1))
    (grouped,) = decode(
        "constexpr_lut_to_dense", {"indices": stored([[0, 3], [1, 2]], "u1", "UINT2"), "lut": table}
    )
    assert grouped.value.tolist() == [[10, 40], [2, 3]]
    assert grouped.encoding == "2-bit table"

    _, by_table = decode(
        "constexpr_lut_to_sparse",
        {
            "indices_mask": mask,
            "indices_nonzero_data": stored([3, 0, 1], "u1", "UINT2"),
            "lut": stored(np.array([10, 20, 30, 40]).reshape(1, 1, 4, 1)),
        },
    )
    assert by_table.value.tolist() == [40, 10, 20]


def test_output_blocks() -> None:
    weight = np.ones((8, 5, 1, 1))
    assert output_block(weight) == 1
    weight[4:8, 2] = 0
    assert output_block(weight) == 4
    weight[2:4, 0] = 0
    assert output_block(weight) == 2
    weight[0, 1] = 0
    assert output_block(weight) == 1
    assert output_block(np.zeros((6, 3))) == 2  # 6 channels make no blocks of 4
