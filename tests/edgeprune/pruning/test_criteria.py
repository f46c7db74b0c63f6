"""Each criterion against what its paper says, on numbers that can be checked by hand."""

import pytest
import torch
from torch import nn

from edgeprune.errors import UserError
from edgeprune.pruning import CRITERIA, Block, Channels, NofM, Unstructured, prune, prune_by_rules
from edgeprune.pruning.criteria import Need, fpgm, lamp
from edgeprune.pruning.patterns import smallest
from edgeprune.pruning.select import Rule

IMAGES = [torch.randn(8, 4, generator=torch.Generator().manual_seed(1)) for _ in range(3)]
LABELLED = [(images, images.sum(1, keepdim=True)) for images in IMAGES]


def linear(rows: list[list[float]]) -> nn.Sequential:
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return nn.Sequential(layer)


def squared_error(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (outputs - wanted).square().mean()


def test_l1_and_l2_disagree_on_blocks():
    rows = [[1.0, 1, 1, 2, 0, 0]]  # L1: 3 against 2; L2: 3 against 4.
    l1, l2 = linear(rows), linear(rows)
    prune(l1, Block(1, 3), 0.5)
    prune(l2, Block(1, 3), 0.5, criterion="squared_magnitude")
    assert l1[0].weight.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert l2[0].weight.tolist() == [[0, 0, 0, 2, 0, 0]]


def test_lamp_divides_by_all_that_is_not_smaller():
    weight = torch.randn(5, 7, 3, 3)
    squares = weight.double().square()
    expected = torch.stack([s / squares[squares >= s].sum() for s in squares.flatten()]).view(weight.shape)
    assert torch.allclose(lamp(weight).double(), expected, rtol=1e-5)


def test_lamp_ranks_a_large_and_a_small_layer_together_and_empties_neither():
    large, small = torch.randn(40, 40) * 100, torch.randn(4, 4) * 0.01
    by_lamp = smallest(torch.cat([lamp(large).flatten(), lamp(small).flatten()]), 1500)
    by_size = smallest(torch.cat([large.abs().flatten(), small.abs().flatten()]), 1500)
    assert bool(by_size[1600:].all())
    assert int((~by_lamp[1600:]).sum()) >= 4


def test_snip_is_the_gradient_times_the_weight():
    model = linear([[1.0, -0.5, 2.0, 0.1]])
    loss = sum(squared_error(model(images), wanted) for images, wanted in LABELLED) / len(LABELLED)
    (gradient,) = torch.autograd.grad(loss, [model[0].weight])
    expected = smallest((gradient * model[0].weight).abs(), 2)
    prune(model, Unstructured(), 0.5, criterion="snip", calibration=LABELLED, loss=squared_error)
    assert torch.equal(model[0].weight == 0, expected)


def test_taylor_foretells_what_the_loss_loses():
    """To first order, the loss without a weight changes by minus gradient times weight."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    data = [(images.double(), wanted.double()) for images, wanted in LABELLED[:1]]
    weight = model[0].weight.data
    weight *= 1e-3  # Small, so that the first order is all there is.
    before = squared_error(model(data[0][0]), data[0][1]).item()
    changes = torch.zeros_like(weight)
    for place in range(weight.numel()):
        kept = weight.view(-1)[place].item()
        weight.view(-1)[place] = 0
        changes.view(-1)[place] = squared_error(model(data[0][0]), data[0][1]).item() - before
        weight.view(-1)[place] = kept
    prune(model, Unstructured(), 0.5, criterion="taylor", layers=["0"], calibration=data, loss=squared_error)
    assert torch.equal(model[0].weight == 0, smallest(changes.square(), 32))


def test_gradients_leave_no_trace():
    model = linear([[1.0, -0.5, 2.0, 0.1]])
    model[0].weight.requires_grad_(False)
    prune(model, Unstructured(), 0.5, criterion="snip", calibration=LABELLED, loss=squared_error)
    assert model[0].weight.grad is None
    assert not model[0].weight.requires_grad


def test_fpgm_is_the_sum_of_distances_between_filters():
    weight = torch.randn(6, 4, 3, 3)
    expected = torch.stack([sum((a - b).norm() for b in weight) for a in weight])
    assert torch.allclose(fpgm(weight).flatten(1).sum(1), expected, rtol=1e-5)


def test_fpgm_removes_what_others_can_replace_not_what_is_small():
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(), nn.Linear(3, 2))
    model[0].weight.data = torch.tensor([0.1, 2.0, 4.0]).view(3, 1, 1, 1)
    prune(model, Channels(), 1 / 3, criterion="fpgm")
    assert model[0].weight.flatten().tolist() == pytest.approx([0.1, 0, 4])


def test_batch_norm_scales_decide_about_channels():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    model[1].weight.data = torch.tensor([0.5, -0.01, -0.9, 0.02])
    prune(model, Channels(), 0.5, criterion="bn_scale", layers=["0"], calibration=[torch.zeros(1, 3, 2, 2)])
    assert model[0].weight.flatten(1).any(1).tolist() == [True, False, True, False]


def test_wanda_weighs_each_weight_by_the_norm_of_its_input():
    model = linear([[1.0, -2.0, 3.0, -4.0], [4.0, 3.0, 2.0, 1.0]])
    inputs = torch.cat(IMAGES) * torch.tensor([0.1, 1.0, 4.0, 8.0])
    sizes = model[0].weight.detach().abs()
    expected = smallest(sizes * inputs.norm(dim=0), 4)
    assert expected.tolist() != smallest(sizes, 4).tolist()
    prune(model, Unstructured(), 0.5, criterion="wanda", calibration=inputs.split(8))
    assert torch.equal(model[0].weight == 0, expected)


def test_random_is_chance_but_repeatable():
    masks = []
    for seed in (0, 0, 1):
        model = linear(torch.ones(16, 16).tolist())
        prune(model, Unstructured(), 0.5, criterion="random", seed=seed)
        masks.append(model[0].weight == 0)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert [int(mask.sum()) for mask in masks] == [128] * 3


def test_the_names_are_settled():
    assert set(CRITERIA) == {
        "magnitude", "squared_magnitude", "lamp", "random", "taylor", "snip", "movement", "bn_scale",
        "fpgm", "wanda", "sparsegpt", "obc",
    }  # fmt: skip


NAN = [torch.full((2, 4), float("nan"))]
MISTAKES = {
    "unknown criterion 'size': choose from magnitude": {"criterion": "size"},
    "criterion 'wanda' looks at images: give calibration=": {"criterion": "wanda"},
    "criterion 'sparsegpt' looks at images": {"criterion": "sparsegpt"},
    "criterion 'wanda': the calibration images are empty": {"criterion": "wanda", "calibration": []},
    "a batch is a tensor of images or (images, labels), not str": {
        "criterion": "wanda",
        "calibration": ["cat.jpg"],
    },
    "criterion 'taylor' needs the loss: give calibration as (images, labels)": {
        "criterion": "taylor",
        "calibration": IMAGES,
    },
    "criterion 'movement' is measured while training: Sparsifier(": {"criterion": "movement"},
    "criterion 'fpgm' ranks whole channels: it fits the pattern Channels(), not Unstructured": {
        "criterion": "fpgm"
    },
    "layer '0': criterion 'wanda' gives NaN or infinite importance": {
        "criterion": "wanda",
        "calibration": NAN,
    },
    "layer '0': its inputs are NaN or infinite on the calibration images": {
        "criterion": "sparsegpt",
        "calibration": NAN,
    },
    "layer '0': criterion 'snip' gives NaN or infinite importance": {
        "criterion": "snip",
        "calibration": [(NAN[0], NAN[0][:, :1])],
        "loss": squared_error,
    },
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_and_change_nothing(message):
    model = linear([[1.0, -0.5, 2.0, 0.1]])
    before = model[0].weight.clone()
    with pytest.raises(UserError) as caught:
        prune(model, Unstructured(), 0.5, **MISTAKES[message])
    assert message in str(caught.value)
    assert torch.equal(model[0].weight, before)
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    "name",
    [n for n, c in CRITERIA.items() if c.needs in (Need.INPUT_NORMS, Need.SECOND_MOMENTS, Need.GRADIENTS)],
)
def test_a_layer_that_never_runs_is_refused_by_name(name):
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(UserError, match="layer 'unused' takes no part in the model's answer"):
        prune(Half(), Unstructured(), 0.5, criterion=name, calibration=LABELLED, loss=squared_error)


def test_a_layer_without_batch_norm_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(UserError, match="layer '0' has no batch norm with a scale right behind it"):
        prune(model, Channels(), 0.5, criterion="bn_scale", calibration=[torch.zeros(1, 3, 2, 2)])


def test_a_criterion_called_without_what_it_needs_says_so():
    with pytest.raises(UserError, match="needs L2 norms of the layer's inputs"):
        CRITERIA["wanda"](torch.ones(2, 2))


def test_nothing_to_prune_is_told_with_reasons():
    with pytest.raises(UserError) as caught:
        prune(linear([[1.0, 2.0, 3.0]]), Block(1, 4), 0.5)
    assert "'0': 3 input channels are not a multiple of 4" in str(caught.value)


def test_rules_may_mix_patterns():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    rules = [Rule(NofM(2, 4), 0.5, "0"), Rule(Block(4, 1), 0.75, "2")]
    images = [torch.randn(32, 8)]
    assert prune_by_rules(model, rules, criterion="sparsegpt", calibration=images) == {"0": 0.5, "2": 0.75}
