"""Learning from the dense model on calibration images: answers come nearer, zeros stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune import pruning
from edgeprune.errors import UserError
from edgeprune.pruning import Unstructured
from edgeprune.pruning.distilling import cropped


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def images(seed: int, count: int = 60) -> Tensor:
    """Smooth, as photographs are: crops of them look like them."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=16, mode="bicubic")


def divergence(model: nn.Module, dense: nn.Module, seen: Tensor) -> float:
    with torch.no_grad():
        given, wanted = (m.eval()(seen).log_softmax(1) for m in (model, dense))
    return float(F.kl_div(given, wanted, log_target=True, reduction="batchmean"))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    dense = network()
    dense[7].weight.data.mul_(8)  # Sure answers, as a trained model gives.
    model = copy.deepcopy(dense)
    pruning.prune(model, Unstructured(), 0.5)
    return model, dense


def test_answers_come_nearer_on_other_images_and_nothing_else_changes(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    model, dense = pair
    model.train()
    zeros = {name: p == 0 for name, p in model.named_parameters() if p.ndim > 1}
    statistics = {name: b.clone() for name, b in model.named_buffers()}
    dense_before = copy.deepcopy(dense.state_dict())
    others = images(1)
    before = divergence(copy.deepcopy(model), dense, others)

    told = pruning.distill(model, dense, list(images(0).split(25)), epochs=10, learning_rate=2e-3)

    assert model.training
    assert len(told) == 10
    assert told[-1] < told[0]
    assert divergence(model, dense, others) < before / 2
    for name, gone in zeros.items():
        assert torch.equal(model.get_parameter(name) == 0, gone)
    assert 0.49 < float(zeros["3.weight"].float().mean()) < 0.51
    for name, kept in statistics.items():
        assert torch.equal(model.get_buffer(name), kept)
    assert all(torch.equal(v, dense_before[k]) for k, v in dense.state_dict().items())
    assert all(p.grad is None for p in (*model.parameters(), *dense.parameters()))


def test_the_same_seed_gives_the_same_weights(pair: tuple[nn.Module, nn.Module]) -> None:
    model, dense = pair
    found = []
    for seed in (3, 3, 4):
        own = copy.deepcopy(model)
        pruning.distill(own, dense, [images(0)], epochs=1, seed=seed)
        found.append(own[7].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": -1.0}, "learning_rate -1"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
    ],
)
def test_what_cannot_be_is_refused(
    pair: tuple[nn.Module, nn.Module], settings: dict[str, float], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        pruning.distill(*pair, [images(0)], **settings)  # type: ignore[arg-type]


def test_an_error_on_the_way_leaves_the_model_as_it_was(pair: tuple[nn.Module, nn.Module]) -> None:
    model, dense = pair
    before = copy.deepcopy(model.state_dict())
    spoilt = images(0)
    last = torch.randperm(len(spoilt), generator=torch.Generator().manual_seed(0))[-1]
    spoilt[last] = torch.nan  # Others are learned from before.
    with pytest.raises(UserError, match="NaN or infinite"):
        pruning.distill(model, dense, [spoilt], epochs=2, learning_rate=1e-2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_crops_keep_the_shape_and_show_a_part() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.arange(24.0).expand(2, 3, 16, 24)
    seen = [cropped(ramp, generator) for _ in range(20)]
    assert {part.shape for part in seen} == {ramp.shape}
    rising = [bool(part[0, 0, 0, -2] > part[0, 0, 0, 1]) for part in seen]
    assert 3 < sum(rising) < 17  # Mirrored about half the time.
    spans = [float((part[0, 0, 8].max() - part[0, 0, 8].min()) / 23) for part in seen]
    assert min(spans) < 0.75
    assert max(spans) > 0.9
