"""SparseGPT against what it promises: the least change in a layer's output."""

import pytest
import torch
from torch import nn

from edgeprune.errors import ToolError
from edgeprune.pruning import Block, Channels, NofM, Unstructured, prune
from edgeprune.pruning import calibration as c
from edgeprune.pruning.sparsegpt import DAMPING, compress, saliency

PATTERNS = {
    "single": (Unstructured(), 0.5),
    "1x4": (Block(1, 4), 0.5),
    "4x1": (Block(4, 1), 0.5),
    "2x2": (Block(2, 2), 0.5),
    "2:4": (NofM(2, 4), 0.5),
    "channels": (Channels(), 0.25),
}


def correlated(*shape: int) -> torch.Tensor:
    """Inputs as layers see them: some large, some small, and neighbours alike."""
    x = torch.randn(*shape)
    x = x + 0.7 * x.roll(1, dims=1) + 0.5 * torch.randn(shape[0], *[1] * (len(shape) - 1))
    return torch.relu(x * torch.logspace(-1, 1, shape[1]).view(1, -1, *[1] * (len(shape) - 2)))


def damped(inputs: torch.Tensor) -> torch.Tensor:
    moments = (inputs.T @ inputs / len(inputs)).double()
    return moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments))


@pytest.mark.parametrize("columns", [6, 300])
def test_what_stays_is_the_least_squares_solution(columns):
    """Zeros in the first column only: everything behind it can make up for them, and does, exactly.

    Also where the columns are settled in several slices.
    """
    inputs = torch.randn(400, columns) + torch.randn(400, 1)
    weight = torch.randn(4, columns) * 0.1 + 5
    weight[:, 0] = 0.1
    moments = (inputs.T @ inputs / len(inputs)).double()
    found = compress(weight, moments.unsqueeze(0), Unstructured(), 1 / columns)
    h = damped(inputs)
    expected = torch.linalg.solve(h[1:, 1:], (h @ weight.double().T)[1:]).T
    assert bool((found[:, 0] == 0).all())
    assert torch.allclose(found[:, 1:].double(), expected, rtol=1e-4)


def layer_and_inputs(kind: str) -> tuple[nn.Module, torch.Tensor]:
    if kind == "linear":
        return nn.Linear(32, 16), correlated(256, 32)
    if kind == "1x1":
        return nn.Conv2d(32, 16, 1), correlated(16, 32, 6, 6)
    return nn.Conv2d(16, 16, 3, padding=1, stride=2), correlated(16, 16, 9, 9)


@pytest.mark.parametrize("kind", ["linear", "1x1", "3x3"])
@pytest.mark.parametrize("name", PATTERNS)
def test_the_output_changes_less_than_by_wanda_and_less_than_by_magnitude(name, kind):
    pattern, sparsity = PATTERNS[name]
    errors = {}
    for criterion in ("sparsegpt", "wanda", "magnitude"):
        torch.manual_seed(5)
        layer, inputs = layer_and_inputs(kind)
        model = nn.Sequential(layer)
        with torch.no_grad():
            before = model(inputs)
            achieved = prune(
                model, pattern, sparsity, criterion=criterion, layers=["0"], calibration=[inputs]
            )
            errors[criterion] = float((model(inputs) - before).square().mean())
        assert achieved["0"] == sparsity
    assert errors["sparsegpt"] < 0.9 * errors["wanda"]
    if name != "2:4":  # Neighbouring inputs are of one size here, and Wanda then is magnitude.
        assert errors["wanda"] < errors["magnitude"]


@pytest.mark.parametrize("pattern", [Unstructured(), Block(1, 4), Block(2, 2), NofM(2, 4), Channels()])
def test_later_layers_see_what_pruned_layers_give(pattern):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    batches = [(correlated(32, 8), None) for _ in range(2)]
    first = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    first.load_state_dict(model.state_dict())
    names = {"criterion": "sparsegpt", "calibration": [images for images, _ in batches]}
    prune(model, pattern, 0.5, layers=["*"], **names)
    prune(first, pattern, 0.5, layers=["0"], **names)
    with torch.no_grad():
        moments = c.second_moments(first[2], [first[:2](images) for images, _ in batches])
    assert torch.equal(model[0].weight, first[0].weight)
    assert torch.equal(model[2].weight, compress(first[2].weight.detach(), moments, pattern, 0.5))


def test_a_block_costs_what_losing_all_of_it_costs():
    """The first block's cost is exact: the least error over all ways to fill in for it."""
    inputs, weight = correlated(64, 8), torch.randn(3, 8)
    h = damped(inputs)
    moments = (inputs.T @ inputs / len(inputs)).unsqueeze(0)
    inverse = torch.linalg.inv(h)[:4, :4]
    first = weight[:, :4].double()
    expected = torch.einsum("ri,ij,rj->r", first, torch.linalg.inv(inverse), first)
    assert torch.allclose(saliency(weight, moments, Block(1, 4))[:, :4].sum(1).double(), expected, rtol=1e-4)


def test_a_channel_costs_all_of_its_output():
    inputs, weight = correlated(64, 8), torch.randn(3, 8)
    moments = (inputs.T @ inputs / len(inputs)).unsqueeze(0)
    expected = torch.einsum("ri,ij,rj->r", weight.double(), damped(inputs), weight.double())
    assert torch.allclose(saliency(weight, moments, Channels()).sum(1).double(), expected, rtol=1e-4)


def test_groups_of_a_convolution_are_layers_of_their_own():
    layer, images = nn.Conv2d(8, 6, 3, groups=2), correlated(8, 8, 6, 6)
    whole = nn.Sequential(layer)
    parts = [nn.Sequential(nn.Conv2d(4, 3, 3)) for _ in range(2)]
    for part, weight in zip(parts, layer.weight.detach().chunk(2), strict=True):
        part[0].weight.data = weight.clone()
    for model, seen in ((whole, images), (parts[0], images[:, :4]), (parts[1], images[:, 4:])):
        prune(model, NofM(2, 4), 0.5, criterion="sparsegpt", layers=["0"], calibration=[seen])
    assert torch.allclose(layer.weight, torch.cat([part[0].weight for part in parts]), atol=1e-5)


@pytest.mark.parametrize("live", [0, 3])
def test_inputs_that_are_always_zero_are_pruned_first(live):
    inputs = torch.randn(32, 8)
    inputs[:, live:] = 0
    model = nn.Sequential(nn.Linear(8, 4))
    model[0].weight.data = torch.rand(4, 8) + 1
    assert prune(model, Unstructured(), 0.5, criterion="sparsegpt", calibration=[inputs]) == {"0": 0.5}
    if live:
        assert bool((model[0].weight[:, :live] != 0).all())


def test_large_inputs_keep_more_weights_in_a_layer_of_several_slices():
    """An equal share of every slice would zero half of what the large inputs meet."""
    inputs = torch.randn(600, 512) * torch.logspace(-2, 0, 512)
    model = nn.Sequential(nn.Linear(512, 8))
    assert prune(model, Unstructured(), 0.5, criterion="sparsegpt", calibration=[inputs]) == {"0": 0.5}
    zeros = (model[0].weight == 0).float().reshape(8, 4, 128).mean((0, 2))
    assert zeros[0] > 0.9
    assert zeros[3] < 0.1


def test_nothing_asked_for_changes_nothing():
    model = nn.Sequential(nn.Linear(8, 4))
    before = model[0].weight.clone()
    prune(model, Unstructured(), 0.0, criterion="sparsegpt", calibration=[correlated(32, 8)])
    assert torch.equal(model[0].weight, before)


def test_moments_that_cannot_be_inverted_are_an_error():
    with pytest.raises(ToolError, match="cannot be inverted"):
        compress(torch.ones(2, 2), -torch.ones(1, 2, 2), Unstructured(), 0.5)


def test_an_error_in_a_later_layer_leaves_all_layers_as_they_were():
    class Overflow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float("inf")

    model = nn.Sequential(nn.Linear(8, 8), Overflow(), nn.Linear(8, 8))
    before = model[0].weight.clone()
    with pytest.raises(Exception, match="layer '2': its inputs are NaN or infinite"):
        prune(model, Unstructured(), 0.5, criterion="sparsegpt", calibration=[correlated(32, 8)])
    assert torch.equal(model[0].weight, before)
