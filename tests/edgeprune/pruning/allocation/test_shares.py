"""Which layer gets how many zeros: exact sums, bounds, and the budgets that cannot be met."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from converters.layers import WeightedLayer
from converters.sizes import SizeModel
from converters.targets import TARGETS
from edgeprune.errors import UserError
from edgeprune.pruning import Block, NofM, OneShot, Sparsifier, Unstructured, prune
from edgeprune.pruning.allocation.curves import error_curves
from edgeprune.pruning.allocation.limits import to_budget
from edgeprune.pruning.allocation.result import Allocation, Curves
from edgeprune.pruning.allocation.shares import (
    by_importance,
    by_multiplications,
    by_sensitivity,
    erdos_renyi,
    uniform,
)

PATTERNS = [Unstructured(), Block(1, 4), Block(4, 1), Block(2, 2)]
WAYS = [erdos_renyi, by_importance, by_sensitivity]


def network(widths: list[int], seed: int = 0) -> nn.Sequential:
    """1x1 convolutions of these widths, the scales of their weights all over the place, and a misfit."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(a, b, 1) for a, b in pairwise(widths)]
    for layer in layers:
        layer.weight.data *= 10 ** float(torch.rand(()) * 2 - 1)
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 7, 1), nn.Conv2d(7, 3, 1))


def sizes(model: nn.Module, target: str, base_bytes: int = 1000) -> SizeModel:
    layers = tuple(
        WeightedLayer(name, "conv1x1", tuple(layer.weight.shape))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    )
    return SizeModel(TARGETS[target], layers, base_bytes)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    widths=st.lists(st.integers(1, 24).map(lambda n: 4 * n), min_size=2, max_size=6),
    sparsity=st.floats(0, 0.9),
    pattern=st.sampled_from(PATTERNS),
    way=st.sampled_from(WAYS),
    maximum=st.sampled_from([0.95, 0.98]),
)
def test_the_zeros_add_up_and_keep_to_their_bounds(widths, sparsity, pattern, way, maximum):
    model = network(widths)
    allocation = way(model, pattern, sparsity, maximum=maximum)
    unit = pattern.out * pattern.in_ if isinstance(pattern, Block) else 1
    total = sum(allocation.weights.values())
    # A whole number of blocks fits under each layer's maximum: the sum may fall short by one a layer.
    reach = sum(int(maximum * n / unit + 1e-9) * unit for n in allocation.weights.values())
    assert allocation.sparsity * total == pytest.approx(min(sparsity * total, reach), abs=unit)
    assert all(0 <= s <= maximum for s in allocation.sparsities.values())
    assert set(allocation.sparsities).isdisjoint(allocation.left_dense)
    if pattern == Block(1, 4) or pattern == Block(2, 2):
        assert set(allocation.left_dense) >= {str(len(widths))}
    achieved = Sparsifier(model, allocation.rules, OneShot()).finalize()
    assert achieved == pytest.approx({n: s for n, s in allocation.sparsities.items() if s > 0})
    for name in allocation.left_dense:
        assert bool((model.get_submodule(name).weight != 0).all())


def test_uniform_is_what_prune_does():
    model = network([16, 32, 8])
    allocation = uniform(model, Block(1, 4), 0.75)
    assert allocation.sparsities == {"0": 0.75, "1": 0.75, "2": 10 / 14}  # of 14 blocks
    assert allocation.left_dense == {"3": "7 input channels are not a multiple of 4"}
    assert Sparsifier(network([16, 32, 8]), allocation.rules, OneShot()).finalize() == prune(
        model, Block(1, 4), 0.75
    )
    assert uniform(model, NofM(2, 4), 0.5).sparsities == {"0": 0.5, "1": 0.5, "2": 0.5}


def test_by_multiplications_puts_zeros_where_maps_are_large():
    """A layer at 16x16 is filled before one at 8x8; a linear layer comes last."""
    early, late = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 64, 1)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 8)]
    model = nn.Sequential(early, nn.MaxPool2d(2), late, *head).eval()
    allocation = by_multiplications(model, torch.zeros(1, 8, 16, 16), Unstructured(), 0.8)
    given = allocation.sparsities
    weights = {"0": 128, "2": 1024, "5": 512}
    assert given["0"] == pytest.approx(0.9, abs=1 / 128)
    assert given["0"] >= given["2"] > 0.8 > given["5"] >= 0.7 - 1 / 512
    assert sum(given[name] * count for name, count in weights.items()) == pytest.approx(0.8 * 1664, abs=1)


def test_erdos_renyi_counts_the_sides_of_the_kernel():
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3))
    allocation = erdos_renyi(model, Unstructured(), 0.8, layers=["*"])
    densities = np.array([1 - s for s in allocation.sparsities.values()])
    shares = np.array([(16 + 32 + 3 + 3) / (16 * 32 * 9), (32 + 64 + 3 + 3) / (32 * 64 * 9)])
    assert densities[0] / densities[1] == pytest.approx(shares[0] / shares[1], rel=1e-3)


def test_one_threshold_takes_what_matters_least_wherever_it_lies():
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    model[1].weight.data = torch.tensor([[0.5, 9], [10, 11], [12, 13], [14, 15]])
    assert by_importance(model, Unstructured(), 0.25).sparsities == {"0": 3 / 8, "1": 1 / 8}
    assert by_importance(model, Unstructured(), 0.5, maximum=0.75).sparsities == {"0": 6 / 8, "1": 2 / 8}
    # LAMP ranks the weights of each layer against their own.
    assert by_importance(model, Unstructured(), 0.5, criterion="lamp").sparsities == {"0": 0.5, "1": 0.5}


def test_layers_that_cost_more_keep_more():
    model = network([32, 32, 32])
    loss = np.array([[0, 1.0, 2, 4, 8], [0, 0.1, 0.2, 0.4, 0.8], [0, 5.0, 10, 20, 40]])
    curves = Curves(("0", "1", "2"), (0, 0.25, 0.5, 0.75, 0.95), loss)
    allocation = by_sensitivity(model, Unstructured(), 0.5, curves=curves, layers=["0", "1", "2"])
    found = allocation.sparsities
    assert found["1"] > found["0"] > found["2"]
    even = sum(float(np.interp(0.5, curves.sparsities, row)) for row in loss)
    assert allocation.loss is not None
    assert allocation.loss < even


def test_a_curve_that_falls_is_held_level():
    curves = Curves(("a",), (0, 0.4, 0.6, 0.8), np.array([[1.0, 3, 2, 5]]))
    assert curves.at("a", np.array([0.2, 0.5, 0.6, 0.7])).tolist() == pytest.approx([1, 2, 2, 3])


def test_errors_grow_with_zeros():
    model = network([16, 32])
    curves = error_curves(model, Block(1, 4))
    assert curves.layers == ("0", "1")
    assert bool((np.diff(curves.loss) > 0).all())


@pytest.mark.parametrize(
    "target", ["coreml-ios16", "coreml-ios18-int8", "coreml-ios18-4bit", "litert-web-int8"]
)
@pytest.mark.parametrize("pattern", [Unstructured(), Block(1, 4)], ids=str)
def test_the_predicted_file_fills_its_budget(target, pattern):
    model = network([256, 256, 512, 64])
    size = sizes(model, target, 20_000)
    dense = int(size.bytes(size.counts))
    least = int(size.bytes(size.counts * 0.05, (1, 1)))
    for share in (0.2, 0.5, 0.9):
        budget = round(least * 1.1 + share * (dense - least * 1.1))
        allocation = to_budget(model, pattern, {target: budget}, {target: size})
        assert 0.97 * budget <= allocation.bytes[target] <= 0.99 * budget
        assert all(0 <= s <= 0.95 for s in allocation.sparsities.values())


def test_several_budgets_are_all_met_and_one_is_filled():
    model = network([256, 256, 512, 64])
    size = {t: sizes(model, t) for t in ("coreml-ios18-int8", "litert-arm64-int8")}
    budgets = {"coreml-ios18-int8": 120_000, "litert-arm64-int8": 90_000}
    found = to_budget(model, Block(1, 4), budgets, size).bytes
    fill = [found[target] / budget for target, budget in budgets.items()]
    assert max(fill) == pytest.approx(0.985, abs=0.015)


def test_a_file_that_fits_is_left_dense():
    model = network([64, 64])
    size = sizes(model, "litert-arm64")
    allocation = to_budget(model, Unstructured(), {"litert-arm64": 10**7}, {"litert-arm64": size})
    assert allocation.rules == []
    assert allocation.loss == 0


def test_the_smallest_that_is_possible_is_named_and_possible():
    model, target = network([256, 256]), "litert-arm64-int8"
    size = sizes(model, target, 20_000)
    with pytest.raises(UserError, match="9,000 bytes cannot be met") as refused:
        to_budget(model, Block(1, 4), {target: 9000}, {target: size})
    named = int(str(refused.value).split("about ")[1].split(" bytes")[0].replace(",", ""))
    assert to_budget(model, Block(1, 4), {target: named + 1}, {target: size}).bytes[target] <= named


def test_the_smallest_within_a_loss_is_named_and_possible():
    model, target = network([256, 256, 128]), "coreml-ios18-int8"
    size = sizes(model, target, 20_000)
    with pytest.raises(UserError, match="at an expected loss of at most 0\\.2") as refused:
        to_budget(model, Block(1, 4), {target: 50_000}, {target: size}, most_loss=0.2)
    named = int(str(refused.value).split("about ")[1].split(" bytes")[0].replace(",", ""))
    allocation = to_budget(model, Block(1, 4), {target: named + 200}, {target: size}, most_loss=0.2)
    assert allocation.loss is not None
    assert allocation.loss <= 0.2


def network_budget(**changes: object) -> Allocation:
    model = network([64, 64])
    arguments = {
        "model": model,
        "pattern": Block(1, 4),
        "budgets": {"litert-arm64": 10_000},
        "sizes": {"litert-arm64": sizes(model, "litert-arm64")},
        **changes,
    }
    return to_budget(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": {}}, "no budget: give bytes for one target or more"),
        ({"budgets": {"litert-arm64": 0}}, "budget for litert-arm64: 0 bytes"),
        ({"budgets": {"coreml-ios16": 10}}, "budget for coreml-ios16: no size model for it"),
        ({"maximum": 1.0}, "maximum sparsity 1 is not between 0 and 1: 0.95 means 95 % zeros"),
        ({"pattern": NofM(2, 4)}, "only blocks and single weights can be allocated"),
        ({"pattern": Block(3, 5)}, "no layer takes part"),
        ({"sizes": {"litert-arm64": sizes(network([8]), "litert-arm64")}}, "knows no layer '0'"),
        ({"curves": Curves(("0",), (0, 0.5), np.zeros((1, 2)))}, "no sensitivity was measured for 1"),
    ],
)
def test_what_a_budget_refuses(change, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        network_budget(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda m: erdos_renyi(m, Block(1, 4), 0.97),
            "sparsity 0.97 is above the maximum of any layer, 0.95",
        ),
        (lambda m: erdos_renyi(m, Block(1, 4), 1.5), "sparsity 1.5 is not in"),
        (
            lambda m: by_multiplications(m, torch.zeros(1, 8, 8, 8), Block(1, 4), 0.05),
            "layers would have -0.05 to 0.15",
        ),
        (
            lambda m: by_importance(m, Block(1, 4), 0.5, criterion="wanda"),
            "does not rank weights by themselves",
        ),
        (
            lambda m: by_importance(m, Block(1, 4), 0.5, criterion="fpgm"),
            "does not rank weights by themselves",
        ),
        (lambda m: by_importance(m, Block(1, 4), 0.5, layers=["nose*"]), "matches no convolution or linear"),
        (lambda m: Curves(("a",), (0.5, 0.2), np.zeros((1, 2))), "must rise from 0"),
        (lambda m: Curves(("a",), (0, 0.2), np.zeros((2, 2))), "losses of shape"),
        (lambda m: Curves(("a",), (0, 0.2), np.full((1, 2), np.nan)), "NaN or infinite"),
    ],
)
def test_what_an_allocation_refuses(make, message):
    with pytest.raises(UserError, match=message):
        make(network([8, 16]))
