"""The least loss at a time or a number of multiplications: known answers, and limits out of reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from converters.layers import WeightedLayer
from converters.runtimes.latency import TimeModel
from converters.sizes import SizeModel
from converters.targets import TARGETS
from edgeprune.errors import UserError
from edgeprune.pruning import Unstructured
from edgeprune.pruning.allocation.limits import to_macs, to_time
from edgeprune.pruning.allocation.result import Curves

EXAMPLE = torch.zeros(1, 3, 16, 16)


def network() -> nn.Sequential:
    """Two 1x1 convolutions of 1,024 weights, the first on 16 times as many pixels."""
    return nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.AvgPool2d(4), nn.Conv2d(32, 32, 1))


def alike(*names: str) -> Curves:
    """What a zero costs grows evenly, and is the same for all layers."""
    points = tuple(np.linspace(0, 0.95, 20).tolist())
    return Curves(names, points, np.tile(np.square(points), (len(names), 1)))


def times(per_kept_ms: list[float], base_ms: float = 1.0, dense_ms: float = 10.0) -> TimeModel:
    counts = np.full(len(per_kept_ms), 1024.0)
    names = ("1", "3")[: len(per_kept_ms)]
    return TimeModel("arm64", names, counts, dense_ms, base_ms, np.array(per_kept_ms))


def test_zeros_go_where_they_save_multiplications():
    found = to_macs(network(), EXAMPLE, Unstructured(), 0.5, curves=alike("1", "3"), layers=["1", "3"])
    assert found.sparsities["1"] > 0.5
    assert found.sparsities["1"] > 8 * found.sparsities["3"] > 0
    assert found.macs_fraction == pytest.approx(0.5, abs=0.005)
    assert found.macs_fraction <= 0.5


def test_alike_layers_get_alike_zeros_for_a_time():
    model = times([0.004, 0.004])  # All kept: 1 + 8.192 ms on sparse kernels.
    found = to_time(
        network(), Unstructured(), {"arm64": 0.3}, {"arm64": model}, curves=alike("1", "3"), layers=["1", "3"]
    )
    # 3 ms of 10: 2 of the 8.192 ms are left, 24.4 % of the weights.
    assert list(found.sparsities.values()) == pytest.approx([0.756, 0.756], abs=0.006)
    assert found.time_fractions["arm64"] == pytest.approx(0.3, abs=0.005)
    assert found.time_fractions["arm64"] <= 0.3


def test_a_layer_that_no_sparse_kernel_runs_keeps_its_weights():
    found = to_time(
        network(),
        Unstructured(),
        {"arm64": 0.3},
        {"arm64": times([0.008])},
        curves=alike("1", "3"),
        layers=["1", "3"],
    )
    assert found.sparsities["3"] == 0
    assert found.sparsities["1"] == pytest.approx(1 - 2 / 8.192, abs=0.006)


def test_no_fewer_zeros_than_the_sparse_kernels_ask_for():
    found = to_time(
        network(),
        Unstructured(),
        {"arm64": 0.9},
        {"arm64": times([0.001, 0.001])},
        curves=alike("1", "3"),
        layers=["1", "3"],
    )
    assert 2 / 3 < found.sparsity < 0.69


def test_whole_weights_are_still_enough_for_the_sparse_kernels():
    """At most 95 % of 1,024 weights are 972, not 972.8: what is missing has to come from the other layer."""
    points = (0.0, 0.95)
    found = to_time(
        network(),
        Unstructured(),
        {"arm64": 0.9},
        {"arm64": times([0.001, 0.001])},
        curves=Curves(("1", "3"), points, np.array([(0.0, 1e-6), (0.0, 1.0)])),
        layers=["1", "3"],
    )
    assert found.sparsities["1"] == 972 / 1024
    assert found.sparsity * 2048 == 1366
    assert found.time_fractions["arm64"] <= 0.9


def test_bytes_and_time_are_met_together():
    layers = tuple(WeightedLayer(name, "conv1x1", (32, 32, 1, 1)) for name in ("1", "3"))
    sizes = {"coreml-ios16": SizeModel(TARGETS["coreml-ios16"], layers, 1000)}
    time_alone, both = (
        to_time(
            network(),
            Unstructured(),
            {"arm64": 0.3},
            {"arm64": times([0.004, 0.004])},
            budgets=budgets,
            sizes=sizes,
            curves=alike("1", "3"),
            layers=["1", "3"],
        )
        for budgets in ({}, {"coreml-ios16": 2200})
    )
    assert both.bytes["coreml-ios16"] <= 2200
    assert both.sparsity > time_alone.sparsity
    assert both.time_fractions["arm64"] < 0.3


@pytest.mark.parametrize(
    ("left", "known", "message"),
    [
        ({}, {}, "no time: give the share"),
        ({"arm64": 1.5}, {"arm64": times([0.1, 0.1])}, "1.5 left is not between 0 and 1"),
        ({"arm64": 0.4}, {}, "no time model"),
        (
            {"arm64": 0.11},
            {"arm64": times([0.004, 0.004])},
            "11% of the dense time cannot be met: the least is 14%",
        ),
        (
            {"arm64": 0.4},
            {"arm64": TimeModel("arm64", ("1",), np.array([9.0]), 1, 1, np.ones(1))},
            "knows no layer",
        ),
    ],
)
def test_what_cannot_be_is_refused(left, known, message):
    with pytest.raises(UserError, match=message):
        to_time(network(), Unstructured(), left, known, curves=alike("1", "3"), layers=["1", "3"])


def test_the_least_of_the_multiplications_is_told():
    with pytest.raises(UserError, match=r"10% of the multiplications cannot be left: the least is \d\d%"):
        to_macs(network(), EXAMPLE, Unstructured(), 0.1, curves=alike("1", "3"), layers=["1", "3"])
