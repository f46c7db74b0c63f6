from __future__ import annotations

import pytest

from edgeprune.evaluation.bench_result import BenchResult, FileTiming, load_memory_bytes, time_ratio

DENSE = FileTiming(sha256="dense", milliseconds=(10.0, 20.0, 10.0, 0.0), load_memory_bytes=100)
FAST = FileTiming(
    sha256="fast", milliseconds=(5.0, 10.0, 9.0, 1.0), load_memory_bytes=80
)  # half the time in two rounds of three; the last has no clock
REFUSED = FileTiming(sha256="refused", milliseconds=())


@pytest.mark.parametrize(
    ("files", "own", "dense", "ratio"),
    [
        ((DENSE, FAST), "fast", "dense", 0.5),
        ((FAST, DENSE), "fast", "dense", 0.5),
        ((DENSE, FAST), "fast", None, 0.5),  # the first file
        ((FAST, DENSE), "fast", None, 1.0),
        ((FAST, DENSE), "dense", None, 2.0),
        ((DENSE, FAST), "dense", "dense", 1.0),
        ((DENSE, REFUSED), "refused", "dense", None),
        ((REFUSED, FAST), "fast", "refused", None),
        ((FAST,), "fast", "dense", None),
        ((DENSE,), "fast", "dense", None),
        (
            (FileTiming(sha256="dense", milliseconds=(0.0,)), FileTiming(sha256="fast", milliseconds=(1.0,))),
            "fast",
            "dense",
            None,
        ),
    ],
)
def test_a_ratio_is_the_median_of_the_rounds(files, own, dense, ratio):
    assert time_ratio([BenchResult(runtime="host", files=files)], own, dense) == ratio


def test_of_several_measurements_the_worst_counts():
    slow = FileTiming(sha256="fast", milliseconds=(7.0, 14.0, 7.0), load_memory_bytes=90)
    measurements = [
        BenchResult(runtime="host", files=(DENSE, FAST)),
        BenchResult(runtime="arm64", files=(DENSE, slow)),
    ]
    assert time_ratio(measurements, "fast", "dense") == 0.7
    assert load_memory_bytes(measurements, "fast") == 90
    assert load_memory_bytes(measurements, "refused") is None
    assert time_ratio([], "fast", "dense") is None
