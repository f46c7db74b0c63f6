"""Channels killed at random (what makes them is zeroed) and removed: the answers must not move."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from edgeprune.errors import ToolError, UserError
from edgeprune.models.build import build
from edgeprune.pruning import resize, shrink
from edgeprune.pruning.channels.groups import find_groups, tensors_in
from edgeprune.pruning.channels.removal import Trials, zero_makers
from edgeprune.pruning.channels.resting import take_out_at_rest

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """A stem, something in the middle, and a class layer."""

    def __init__(self, forward: Callable[["Net", Tensor], object], **parts: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classes = nn.Linear(16, 5)
        for name, part in parts.items():
            setattr(self, name, part)
        self.way = forward

    def forward(self, images: Tensor) -> object:
        return self.way(self, self.stem(images))

    def answer(self, maps: Tensor) -> Tensor:
        return self.classes(maps.mean((2, 3)))


def conv(out: int = 16, in_: int = 16, **settings: int) -> nn.Conv2d:
    return nn.Conv2d(in_, out, settings.pop("kernel", 1), **settings)


def shuffled(net: Net, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return net.answer(net.a(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))


def halves(net: Net, x: Tensor) -> Tensor:
    """ShuffleNetV2's block."""
    first, second = x.chunk(2, dim=1)
    x = torch.cat([first, net.b(F.relu(net.a(second)))], 1)
    n, c, h, w = x.shape
    return net.answer(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def partial(net: Net, x: Tensor) -> Tensor:
    """FasterNet's: a convolution of the first four channels."""
    first, rest = torch.split(x, [4, 12], dim=1)
    return net.answer(net.b(F.relu(net.a(torch.cat([net.part(first), rest], 1)))))


def gated(net: Net, x: Tensor) -> Tensor:
    gate = torch.sigmoid(net.b(F.relu(net.a(x.mean((2, 3), keepdim=True)))))
    return net.answer(x * gate)


def through(*names: str) -> Callable[["Net", Tensor], Tensor]:
    """One part after the other."""

    def way(net: Net, x: Tensor) -> Tensor:
        for name in names:
            x = getattr(net, name)(x)
        return net.answer(x)

    return way


def beside(net: Net, x: Tensor) -> Tensor:
    return net.answer(net.c(torch.cat([net.a(x), x, net.b(x)], 1)))


def summed(net: Net, x: Tensor) -> Tensor:
    return net.answer(net.c(torch.cat([net.a(x), net.b(x)], 1) + x))


def fixed(net: Net, x: Tensor) -> Tensor:
    return net.answer(net.b(net.a(x).view(-1, 16, 256).view(-1, 16, 16, 16)))


def attended(net: Net, x: Tensor) -> Tensor:
    queries = net.a(x).flatten(2)
    return net.answer(net.b(F.scaled_dot_product_attention(queries, queries, queries).view(-1, 16, 16, 16)))


class FrozenNorm(nn.Module):
    """A batch norm in buffers, as in detection models."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(channels) + 0.5)
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


class Shifted(nn.Module):
    """An activation with one shift for all channels, as StarReLU and learnable affine blocks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) ** 2 + self.shift


def masked(layer: nn.Conv2d) -> nn.Conv2d:
    return prune.l1_unstructured(layer, "weight", 0.5)


def bare(**settings: int) -> nn.Conv2d:
    return nn.Conv2d(16, 16, 1, bias=False, **settings)


def frozen(layer: nn.Conv2d) -> nn.Conv2d:
    return layer.requires_grad_(False)


# Name: the model, and the layers that must shrink; whatever else there is must be named as left.
KINDS: dict[str, tuple[Callable[[], Net], set[str]]] = {
    "plain": (lambda: Net(through("a"), a=conv()), {"stem.0", "a"}),
    "flip": (lambda: Net(lambda s, x: s.answer(s.a(x.flip(1))), a=conv()), {"stem.0", "a"}),
    "roll": (lambda: Net(lambda s, x: s.answer(s.a(x.roll(3, 1))), a=conv()), {"a"}),
    "shuffle": (lambda: Net(shuffled, a=conv()), {"stem.0", "a"}),
    "halves": (lambda: Net(halves, a=conv(16, 8), b=conv(8, 16)), {"stem.0", "a", "b"}),
    "partial": (
        lambda: Net(partial, part=conv(4, 4, kernel=3, padding=1), a=conv(), b=conv()), {"part", "a", "b"},
    ),
    "gate": (lambda: Net(gated, a=conv(8), b=conv(16, 8)), {"stem.0", "a", "b"}),
    "concatenation": (
        lambda: Net(beside, a=conv(8), b=conv(24), c=conv(16, 48)),
        {"stem.0", "a", "b", "c"},
    ),
    "dense sum": (
        lambda: Net(summed, a=conv(8), b=conv(8), c=conv()),
        {"stem.0", "a", "b", "c"},
    ),
    "heads": (lambda: Net(lambda s, x: (s.answer(x), s.a(x)), a=conv(8)), {"stem.0"}),
    "named heads": (lambda: Net(lambda s, x: {"out": s.answer(s.a(x)), "map": x}, a=conv()), {"a"}),
    "fixed view": (
        lambda: Net(fixed, a=conv(), b=conv()),
        {"stem.0", "b"},
    ),
    "flattened": (
        lambda: Net(lambda s, x: s.fc(F.avg_pool2d(s.a(x), 8).flatten(1)), a=conv(), fc=nn.Linear(64, 5)),
        {"stem.0", "a"},
    ),
    "buffers": (lambda: Net(through("a", "n"), a=conv(), n=FrozenNorm(16)), {"stem.0", "a"}),
    "group norm": (
        lambda: Net(through("a", "n", "b"), a=conv(), n=nn.GroupNorm(4, 16), b=conv()),
        {"stem.0", "b"},
    ),
    "layer norm": (
        lambda: Net(through("a", "n", "b"), a=conv(), n=nn.LayerNorm([16, 16, 16]), b=conv()),
        {"stem.0", "b"},
    ),
    "weight norm": (
        lambda: Net(through("a", "b"), a=parametrizations.weight_norm(conv()), b=conv()), {"b"},
    ),
    "old weight norm": (
        lambda: Net(through("a", "b"), a=nn.utils.weight_norm(conv()), b=conv()), {"b"},
    ),
    "spectral norm": (
        lambda: Net(through("a", "b"), a=parametrizations.spectral_norm(conv()), b=conv()), {"b"},
    ),
    "torch masks": (lambda: Net(through("a", "b"), a=masked(conv()), b=conv()), {"b"}),
    "frozen": (lambda: Net(through("a"), a=frozen(conv())), {"stem.0", "a"}),
    "grouped": (
        lambda: Net(through("a", "b"), a=conv(16, 16, groups=4), b=conv()), {"stem.0", "a", "b"},
    ),
    "many for each": (
        lambda: Net(through("a", "b"), a=conv(32, 16, groups=16), b=conv(16, 32)), {"stem.0", "b"},
    ),
    "transposed": (
        lambda: Net(through("a", "b"), a=nn.ConvTranspose2d(16, 24, 2, 2), b=conv(16, 24)),
        {"stem.0", "a", "b"},
    ),
    "pixel shuffle": (
        lambda: Net(lambda s, x: s.answer(s.b(F.pixel_shuffle(s.a(x), 2))), a=conv(32), b=conv(16, 8)),
        {"stem.0", "b"},
    ),
    "attention": (
        lambda: Net(attended, a=conv(), b=conv()),
        {"stem.0", "b"},
    ),
    "a shift for all": (lambda: Net(through("a", "n", "b"), a=conv(), n=Shifted(), b=conv()),
                        {"stem.0", "a", "b"}),
    "a shift for all, a norm behind": (
        lambda: Net(through("a", "n", "b", "m"), a=conv(), n=Shifted(), b=bare(), m=nn.BatchNorm2d(16)),
        {"stem.0", "a", "b"},
    ),
    "prelu": (lambda: Net(through("a", "n"), a=conv(), n=nn.PReLU(16)), {"stem.0", "a"}),
}  # fmt: skip


def killed(model: nn.Module, example: Tensor) -> tuple[list, dict[str, str]]:
    """Zero what makes a third of each group's channels; what would remove them, and what is left."""
    found = find_groups(model, example)
    generator = torch.Generator().manual_seed(2)
    cuts = []
    for group in found.groups:
        units = torch.randperm(len(group), generator=generator)[: max(len(group) // 3, 1)]
        cuts.append((group, sorted(units.tolist())))
    possible, moving = Trials(model, example, seconds=60).possible(cuts)
    zero_makers(model, possible)
    return possible, {**found.left, **moving}


def with_signal(model: nn.Module, example: Tensor) -> nn.Module:
    """Perturbed batch norms, with the statistics of a random batch: a constant answer could not move."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(torch.randn(4, *example.shape[1:]))
    return model.eval()


def assert_dead_channels_go(model: nn.Module, example: Tensor) -> set[str]:
    model = with_signal(model, example).double()
    possible, left = killed(model, example.double())
    images = torch.randn(2, *example.shape[1:], dtype=torch.float64)
    with torch.no_grad():
        before = [t.clone() for t in tensors_in(model(images))]
        assert take_out_at_rest(model, example.double(), possible) == []
        after = list(tensors_in(model(images)))
    for one, other in zip(before, after, strict=True):
        spread = float((one[:1] - one[1:]).abs().max())
        assert spread > 1e-6
        assert float((one - other).abs().max()) < 1e-6 * spread
    assert all(left.values())
    return {axis.layer for group, _ in possible for axis in group.makers}


@pytest.mark.parametrize("kind", KINDS)
def test_dead_channels_can_go_and_the_answers_do_not_move(kind):
    torch.manual_seed(0)
    make, shrinking = KINDS[kind]
    assert assert_dead_channels_go(make(), EXAMPLE) == shrinking


@pytest.mark.parametrize(
    ("reader", "exact"),
    [(conv(), True), (bare(), False), (conv(kernel=3, padding=1), False)],
    ids=["a bias", "no bias", "zeros around the map"],
)
def test_what_dead_channels_give_is_kept_where_something_can_hold_it(reader, exact):
    torch.manual_seed(0)
    model = with_signal(Net(through("a", "n", "b"), a=conv(), n=Shifted(), b=copy.deepcopy(reader)), EXAMPLE)
    (group,) = (group for group in find_groups(model, EXAMPLE).groups if group.layer == "a")
    cut = [(group, [3, 5])]
    zero_makers(model, cut)
    wanted = copy.deepcopy(model)
    lost = take_out_at_rest(model, EXAMPLE, cut)
    assert [axis.tensor for axis in lost] == ([] if exact else ["b.weight"])
    assert model.b.weight.shape[1] == 14
    images = torch.randn(2, 3, 16, 16)
    # A convolution's border is all that a bias is wrong about.
    inner = slice(1, -1) if reader.bias is not None else slice(0, 0)
    with torch.no_grad():
        for net in (model, wanted):
            net.way = lambda net, x: net.b(net.n(net.a(x)))
        torch.testing.assert_close(model(images)[..., inner, inner], wanted(images)[..., inner, inner])
        assert torch.allclose(model(images), wanted(images), atol=1e-4) == exact


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "timm/regnety_002",
        "timm/fasternet_t0",
        "timm/repghostnet_050",
    ],
)
def test_dead_channels_of_real_networks_can_go(name):
    torch.manual_seed(0)
    assert len(assert_dead_channels_go(build(name, 10), torch.zeros(1, 3, 64, 64))) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "densenet121", "efficientnet_b0", "lraspp_mobilenet_v3_large", "mnasnet0_5", "regnet_x_400mf",
        "resnet50", "resnext50_32x4d", "squeezenet1_1", "swin_t", "timm/convnext_atto",
        "timm/edgenext_xx_small",
        "timm/efficientvit_b0", "timm/fastvit_t8", "timm/ghostnet_100", "timm/hrnet_w18_small",
        "timm/inception_next_atto", "timm/mixnet_s", "timm/mobileone_s0", "timm/poolformer_s12",
        "timm/rexnet_100", "timm/shvit_s1", "timm/starnet_s1", "timm/xcit_nano_12_p16_224",
    ],
)  # fmt: skip
def test_dead_channels_of_many_networks_can_go(name):
    torch.manual_seed(0)
    assert_dead_channels_go(build(name, 10, 64), torch.zeros(1, 3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mnasnet0_5", "timm/convnext_atto", "timm/fastvit_t8", "timm/inception_next_atto", "timm/rdnet_tiny"],
)
def test_fresh_models_take_what_shrinking_leaves(name):
    torch.manual_seed(0)
    model, fresh = build(name, 10, 64).eval(), build(name, 10, 64).eval()
    shrink(model, torch.zeros(1, 3, 64, 64), 0.5)
    resize(fresh, dict(model.state_dict()))  # Without what torch keeps beside a state dict, as files are.
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(fresh(images), model(images))


def test_what_stays_is_told_with_the_reason():
    torch.manual_seed(0)
    left = shrink(KINDS["partial"][0]().eval(), EXAMPLE, 0.5).left
    assert left["stem.0"] == "a part of its channels is taken by number"
    left = shrink(KINDS["group norm"][0]().eval(), EXAMPLE, 0.5).left
    assert left["a"] == "a normalisation across channels reads it"
    assert left["classes"] == "its channels are the model's answers"
    left = shrink(KINDS["weight norm"][0]().eval(), EXAMPLE, 0.5).left
    assert left["stem.0"] == "a convolution with a computed weight reads it"


def test_a_model_comes_back_in_its_own_mode_with_frozen_and_tied_weights():
    torch.manual_seed(0)
    model = Net(lambda s, x: s.answer(s.b(F.relu(s.a(x)))), a=conv(), b=frozen(conv()))
    model.b.weight = model.a.weight
    model.train()
    statistics = model.stem[1].running_mean.clone()
    shrink(model, EXAMPLE, 0.5)
    assert model.training
    assert model.stem[1].training
    assert model.a.weight is model.b.weight
    assert not model.b.bias.requires_grad
    assert model.a.weight.shape == (8, 8, 1, 1)
    assert set(model.stem[1].running_mean.tolist()) <= set(statistics.tolist())


def test_a_failed_shrink_leaves_the_model_as_it_was():
    model = KINDS["plain"][0]()
    before = copy.deepcopy(model.state_dict())
    for arguments, error in (
        ({"fraction": 0.01}, ToolError),
        ({"fraction": 0.5, "keep": ["stem", "a"]}, ToolError),
        ({"fraction": 0.5, "criterion": "taylor"}, UserError),
    ):
        with pytest.raises(error):
            shrink(model, EXAMPLE, **arguments)
        assert model.training
        assert model.a.in_channels == 16
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_keep_holds_for_a_whole_stage():
    widths = shrink(KINDS["plain"][0]().eval(), EXAMPLE, 0.5, keep=["stem"])
    assert widths == {"a": (16, 8)}
    assert widths.left["stem.0"] == "it is asked to keep its channels"


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 1))), EXAMPLE, "is scripted"),
        (lambda: nn.Sequential(nn.ReLU()), EXAMPLE, "no convolution and no linear layer"),
        (lambda: nn.Conv2d(3, 8, 1), torch.zeros(1, 4, 8, 8), r"does not take the example, \(1, 4, 8, 8\)"),
    ],
)
def test_models_that_cannot_be_followed_are_refused(model, example, message):
    with pytest.raises(UserError, match=message):
        shrink(model(), example, 0.5)


def test_the_search_ends_in_time():
    with pytest.raises(ToolError, match="took more than 0 s"):
        shrink(KINDS["plain"][0](), EXAMPLE, 0.5, seconds=0)


def test_frozen_weights_have_their_importance_too():
    torch.manual_seed(0)
    model = KINDS["frozen"][0]().eval()
    batches = [(torch.randn(4, 3, 16, 16), torch.arange(4))]
    assert "a" in shrink(model, EXAMPLE, 0.5, criterion="taylor", calibration=batches)
    assert not model.a.weight.requires_grad
