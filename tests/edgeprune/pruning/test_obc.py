"""Exact Optimal Brain Compression against what it promises, and against a plain form of it."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import ToolError, UserError
from edgeprune.pruning import Block, Channels, NofM, Pattern, Unstructured, obc, prune, sparsegpt
from edgeprune.pruning import calibration as c
from edgeprune.pruning.allocation.shares import by_sensitivity
from edgeprune.pruning.sequential import obc_curves

PATTERNS = {
    "single": Unstructured(),
    "1x4": Block(1, 4),
    "4x1": Block(4, 1),
    "2x2": Block(2, 2),
    "2:4": NofM(2, 4),
    "channels": Channels(),
}


def layer_problem(out: int = 12, columns: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs that go together, and their second moments."""
    torch.manual_seed(0)
    mixing = torch.randn(columns, columns, dtype=torch.float64) * torch.logspace(0, -2, columns)
    inputs = torch.randn(2000, columns, dtype=torch.float64) @ mixing.T
    return torch.randn(out, columns), inputs, (inputs.T @ inputs / len(inputs)).unsqueeze(0)


def lost(weight: Tensor, new: Tensor, inputs: Tensor) -> float:
    return float(((new.double() - weight.double()) @ inputs.double().T).square().sum())


def plain(row: Tensor, moments: Tensor, side: int, steps: int) -> list[tuple[int, float]]:
    """The paper's algorithm as it is written: the inverse is updated after every step."""
    inverse, left, found = torch.linalg.inv(moments), list(range(len(row) // side)), []
    row = row.clone()
    for _ in range(steps):
        costs = {}
        for unit in left:
            at = slice(unit * side, (unit + 1) * side)
            costs[unit] = float(row[at] @ torch.linalg.inv(inverse[at, at]) @ row[at])
        best = min(left, key=costs.__getitem__)
        at = slice(best * side, (best + 1) * side)
        solved = torch.linalg.inv(inverse[at, at])
        row = row - row[at] @ solved @ inverse[at]
        inverse = inverse - inverse[:, at] @ solved @ inverse[at]
        row[at] = 0
        left.remove(best)
        found.append((best, costs[best]))
    return found


@pytest.mark.parametrize(("pattern", "side"), [(Unstructured(), 1), (Block(1, 2), 2), (Block(1, 4), 4)])
def test_each_step_is_that_of_the_paper(pattern: Pattern, side: int):
    weight, _, moments = layer_problem()
    problem = obc.problem_of(weight, moments, pattern)
    steps = obc.descend(problem, pattern, 0.75)
    for row, places, costs in zip(weight.double(), steps.places[0], steps.costs[0], strict=True):
        wanted = plain(row, problem.moments[0], side, len(places))
        assert places.tolist() == [place for place, _ in wanted]
        assert costs.tolist() == pytest.approx([cost for _, cost in wanted], rel=1e-3)


@pytest.mark.parametrize("kind", ["single", "1x4", "2x2", "2:4"])
def test_several_at_a_step_cost_hardly_more(kind, monkeypatch):
    pattern = PATTERNS[kind]
    weight, _, moments = layer_problem(8, 192)
    problem = obc.problem_of(weight, moments, pattern)
    errors = {}
    for at_a_time in (1, 3):
        monkeypatch.setattr(obc, "ONE_BY_ONE", 192 // problem.side // at_a_time)
        new = obc.compress(problem, pattern, 0.5)
        assert int((new == 0).sum()) == new.numel() // 2
        errors[at_a_time] = obc.error(problem, new)
    assert errors[1] < errors[3] < 1.1 * errors[1]


def test_shrinkage_is_what_the_paper_says():
    """Chen, Wiesel, Eldar & Hero, 2010, equation 23, in numbers: three variances, ten samples."""
    moments = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)).unsqueeze(0)
    # trace 6, sum of squares 18: (18 / 3 + 36) / ((10 + 1 - 2 / 3) * (18 - 36 / 3))
    assert obc.shrinkage(moments, 10) == pytest.approx(42 / (31 / 3 * 6))
    assert obc.shrinkage(torch.eye(3, dtype=torch.float64).unsqueeze(0), 10) == 1
    assert obc.shrinkage(moments, float("inf")) == 0


def test_few_samples_are_not_believed():
    """Zeros seem free with fewer samples than columns: what is left can make up for any on those samples."""
    torch.manual_seed(0)
    weight = torch.randn(24, 96)
    inputs = torch.randn(2000, 8) @ torch.randn(8, 96) + torch.randn(2000, 96)
    few, others = inputs[:60], inputs[60:]
    moments = (few.T @ few / len(few)).double().unsqueeze(0)
    found = {}
    for samples in (60, float("inf")):
        problem = obc.problem_of(weight, moments, Unstructured(), samples=samples)
        new = obc.compress(problem, Unstructured(), 0.5)
        found[samples] = lost(weight, new, few), lost(weight, new, others)
    assert found[60][0] > found[float("inf")][0]
    assert found[60][1] < 0.7 * found[float("inf")][1]


@pytest.mark.parametrize("kind", PATTERNS)
def test_zeros_are_where_and_as_many_as_the_pattern_says(kind):
    pattern = PATTERNS[kind]
    weight, _, moments = layer_problem()
    new = obc.compress(obc.problem_of(weight, moments, pattern), pattern, 0.5)
    zeros = new == 0
    assert float(zeros.double().mean()) == 0.5
    if isinstance(pattern, NofM):
        assert bool((zeros.view(12, 6, 4).sum(2) == 2).all())
    else:
        assert torch.equal(pattern.spread(pattern.units(zeros.float()) > 0, zeros.shape), zeros)


@pytest.mark.parametrize("kind", ["single", "1x4", "4x1", "2x2", "2:4"])
def test_it_loses_less_than_sparsegpt_and_that_less_than_magnitude(kind):
    pattern = PATTERNS[kind]
    weight, inputs, moments = layer_problem(24, 96)
    exact = obc.compress(obc.problem_of(weight, moments, pattern), pattern, 0.5)
    other = sparsegpt.compress(weight, moments, pattern, 0.5)
    largest = weight * pattern.mask(weight.abs(), 0.5)
    assert lost(weight, exact, inputs) < 0.5 * lost(weight, other, inputs)
    assert lost(weight, other, inputs) < lost(weight, largest, inputs)


def test_two_of_four_holds_at_every_kernel_position():
    torch.manual_seed(0)
    weight, inputs = torch.randn(6, 8, 3, 3), torch.randn(500, 72)
    moments = (inputs.T @ inputs / 500).unsqueeze(0)
    new = obc.compress(obc.problem_of(weight, moments, NofM(2, 4)), NofM(2, 4), 0.5)
    assert bool(((new == 0).view(6, 2, 4, 3, 3).sum(2) == 2).all())


def test_what_stays_is_the_least_squares_solution():
    weight, inputs, moments = layer_problem()
    problem = obc.problem_of(weight, moments, Unstructured())
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    new = obc.refit(problem, kept)
    damping = float(problem.moments[0, 0, 0] - moments[0, 0, 0]) * len(inputs)
    # Damping is so many further images: inputs of that size, one at a time.
    inputs = torch.cat([inputs.double(), damping**0.5 * torch.eye(24, dtype=torch.float64)])
    for row, mask, found in zip(weight.double(), kept, new, strict=True):
        wanted = np.linalg.lstsq(inputs[:, mask].numpy(), (inputs @ row).numpy(), rcond=None)[0]
        assert found[mask].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
        assert not found[~mask].any()


def test_error_curves_foretell_the_error():
    pattern = Block(1, 4)
    weight, _, moments = layer_problem(32, 64)
    problem = obc.problem_of(weight, moments, pattern)
    levels = [0.0, 0.25, 0.5, 0.75]
    curve = obc.error_curve(problem, pattern, levels)
    assert curve[0] == 0
    for level, foretold in list(zip(levels, curve, strict=True))[1:]:
        assert foretold == pytest.approx(obc.error(problem, obc.compress(problem, pattern, level)), rel=0.02)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 16, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 8),
    )  # fmt: skip
    model.train()
    for _ in range(30):
        model(images())
    return model.eval()


def images(seed: int = 0, count: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(count, 3, 12, 12, generator=generator)
    return plain + plain.roll(1, 2) + plain.roll(1, 3)


def moved(model: nn.Module, dense: nn.Module) -> float:
    unseen = images(7, 64)
    with torch.no_grad():
        return float((model(unseen) - dense(unseen)).square().mean() / dense(unseen).var())


@pytest.mark.parametrize("kind", ["single", "1x4", "2:4"])
def test_a_network_moves_less_by_obc_and_by_refitting(kind):
    pattern, dense, batches = PATTERNS[kind], network(), [images(seed) for seed in range(4)]
    ways = {
        "magnitude": {"criterion": "magnitude"},
        "refit": {"criterion": "magnitude", "calibration": batches, "refit": True},
        "sparsegpt": {"criterion": "sparsegpt", "calibration": batches},
        "obc": {"criterion": "obc", "calibration": batches},
    }
    found = {}
    for way, settings in ways.items():
        model = copy.deepcopy(dense)
        zeros = prune(model, pattern, 0.5, **settings)
        assert set(zeros.values()) == {0.5}
        found[way] = moved(model, dense)
    assert found["obc"] < found["refit"] < 0.5 * found["magnitude"]
    assert found["obc"] < 0.8 * found["sparsegpt"]


def test_refitting_keeps_the_zeros_of_the_criterion():
    dense, batches = network(), [images()]
    plain, refitted = copy.deepcopy(dense), copy.deepcopy(dense)
    prune(plain, Block(1, 4), 0.5)
    prune(refitted, Block(1, 4), 0.5, calibration=batches, refit=True)
    for index in (3, 7, 11):
        assert torch.equal(plain[index].weight == 0, refitted[index].weight == 0)
        assert not torch.equal(plain[index].weight, refitted[index].weight)


def test_means_are_those_of_the_dense_model_behind_bias_and_batch_norm():
    dense, batches = network(), [images(seed) for seed in range(4)]
    model = copy.deepcopy(dense)
    prune(model, Unstructured(), 0.7, criterion="obc", calibration=batches)
    seen = torch.cat(batches)
    with torch.no_grad():
        for until in (5, 8):  # Behind the batch norm, and behind the layer with a bias.
            means = [part[:until](seen).mean((0, 2, 3)) for part in (model, dense)]
            assert torch.allclose(*means, atol=1e-3)


def test_layers_see_no_more_batches_than_they_need(monkeypatch):
    monkeypatch.setattr(c, "ENOUGH_IMAGES", 32)
    monkeypatch.setattr(c, "ENOUGH_PLACES", 1)
    model, ran = network(), []
    model[0].register_forward_hook(lambda *_: ran.append(1))
    prune(
        model, Unstructured(), 0.5, criterion="obc", calibration=[images(s) for s in range(4)], layers=["3"]
    )
    # For the order, for batch norms, twice to see what its operations are; a batch in each of the two models.
    assert len(ran) == 6


def test_allocation_by_error_curves_moves_less_than_the_same_share_everywhere():
    dense, batches = network(), [images(seed) for seed in range(4)]
    curves = obc_curves(dense, Block(1, 4), batches)
    assert curves.layers == ("3", "7", "11")
    allocation = by_sensitivity(dense, Block(1, 4), 0.6, curves=curves)
    assert allocation.sparsity == pytest.approx(0.6, abs=0.01)
    assert len(set(allocation.sparsities.values())) > 1


def test_an_error_in_a_later_layer_leaves_the_model_as_it_was(monkeypatch):
    model = network()
    before = copy.deepcopy(model.state_dict())
    solve = obc.compress

    def fails(problem: obc.Problem, *rest: object) -> Tensor:
        if problem.shape[1] == 64:
            raise ToolError("the second moments of its inputs cannot be inverted")
        return solve(problem, *rest)

    monkeypatch.setattr(obc, "compress", fails)
    with pytest.raises(ToolError, match="layer '11': the second moments"):
        prune(model, Unstructured(), 0.5, criterion="obc", calibration=[images()])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_blocks_across_two_groups_are_refused():
    with pytest.raises(UserError, match="12 outputs in 2 groups: blocks of 4 would lie across two"):
        obc.problem_of(torch.randn(12, 4, 1, 1), torch.eye(4).expand(2, 4, 4), Block(4, 1))
