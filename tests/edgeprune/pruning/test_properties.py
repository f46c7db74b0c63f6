"""What holds for every pattern, whatever the layer, the criterion and the numbers."""

import copy
import io

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from edgeprune.errors import UserError
from edgeprune.pruning import Block, Channels, NofM, Unstructured, prune

WEIGHT_ONLY = ["magnitude", "squared_magnitude", "lamp", "random"]
CALIBRATED = ["wanda", "sparsegpt", "snip", "taylor"]
GRADIENTS = ("snip", "taylor")
quick = settings(deadline=None, max_examples=40)


@st.composite
def patterns(draw):
    of = draw(st.integers(2, 6))
    return draw(
        st.sampled_from(
            [
                Unstructured(),
                Block(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
                NofM(draw(st.integers(1, of - 1)), of),
                Channels(),
            ]
        )
    )


@st.composite
def cases(draw):
    """A pattern, a sparsity it can have, and a model of one layer that it divides."""
    pattern = draw(patterns())
    out = draw(st.integers(1, 5)) * (pattern.out if isinstance(pattern, Block) else 1)
    in_ = draw(st.integers(1, 5)) * (
        pattern.in_ if isinstance(pattern, Block) else pattern.of if isinstance(pattern, NofM) else 1
    )
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    torch.manual_seed(draw(st.integers(0, 1000)))
    layer = draw(st.sampled_from([nn.Linear(in_, out), nn.Conv2d(in_, out, kernel)]))
    sparsity = pattern.sparsity if isinstance(pattern, NofM) else draw(st.floats(0, 0.99))
    return pattern, sparsity, nn.Sequential(layer)


def batches_for(model: nn.Sequential) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    layer = model[0]
    shape = (6, layer.in_features) if isinstance(layer, nn.Linear) else (3, layer.in_channels, 4, 4)
    return [(torch.randn(shape, generator=generator), torch.zeros(())) for _ in range(2)]


def pruned(model: nn.Module, pattern, sparsity: float, criterion: str) -> nn.Module:
    model = copy.deepcopy(model)
    prune(
        model,
        pattern,
        sparsity,
        criterion=criterion,
        layers=["0"],
        calibration=batches_for(model) if criterion in CALIBRATED else None,
        loss=lambda outputs, _: outputs.square().mean(),
    )
    return model


def units_gone(weight: torch.Tensor, pattern) -> torch.Tensor:
    """Which weights belong to units that are zero as a whole; spelt out anew, without the library."""
    zero = weight == 0
    if isinstance(pattern, Channels):
        return torch.stack([row.all().expand(row.shape) for row in zero])
    if not isinstance(pattern, Block):
        return zero
    gone = torch.zeros_like(zero)
    for row in range(0, weight.shape[0], pattern.out):
        for column in range(0, weight.shape[1], pattern.in_):
            block = (slice(row, row + pattern.out), slice(column, column + pattern.in_))
            gone[block] = zero[block].flatten(0, 1).all(0)
    return gone


def unit_weights(weight: torch.Tensor, pattern) -> int:
    if isinstance(pattern, Channels):
        return weight[0].numel()
    return pattern.out * pattern.in_ if isinstance(pattern, Block) else 1


@pytest.mark.parametrize("criterion", WEIGHT_ONLY + CALIBRATED)
@quick
@given(cases())
def test_zeros_are_whole_units_and_within_one_of_the_target(criterion, case):
    pattern, sparsity, model = case
    weight = pruned(model, pattern, sparsity, criterion)[0].weight
    assert torch.equal(weight == 0, units_gone(weight, pattern))
    zeros, wanted = int((weight == 0).sum()), sparsity * weight.numel()
    assert abs(zeros - wanted) <= unit_weights(weight, pattern)
    if isinstance(pattern, NofM):
        groups = (weight != 0).reshape(weight.shape[0], -1, pattern.of, *weight.shape[2:])
        assert bool((groups.sum(2) == pattern.keep).all())


@pytest.mark.parametrize("criterion", ["bn_scale", "fpgm"])
@quick
@given(st.integers(1, 12), st.integers(1, 4), st.floats(0, 0.99), st.booleans())
def test_channel_criteria_zero_whole_channels(criterion, out, in_, sparsity, alike):
    model = nn.Sequential(nn.Conv2d(in_, out, 2), nn.BatchNorm2d(out)).eval()
    if alike:
        model[0].weight.data.fill_(1.0)
    else:
        model[1].weight.data.normal_()
    images = [torch.zeros(1, in_, 4, 4)]
    prune(model, Channels(), sparsity, criterion=criterion, layers=["0"], calibration=images)
    kept = (model[0].weight != 0).flatten(1)
    assert torch.equal(kept.all(1), kept.any(1))
    assert int((~kept.any(1)).sum()) == round(sparsity * out)


@quick
@given(cases(), st.sampled_from(WEIGHT_ONLY + CALIBRATED), st.integers(1, 3))
def test_ties_do_not_change_the_count(case, criterion, values):
    pattern, sparsity, model = case
    weight = model[0].weight.data
    weight.copy_(torch.randint(1, values + 1, weight.shape))
    zeros = int((pruned(model, pattern, sparsity, criterion)[0].weight == 0).sum())
    assert abs(zeros - sparsity * weight.numel()) <= unit_weights(weight, pattern)


@quick
@given(cases(), st.sampled_from(WEIGHT_ONLY + CALIBRATED))
def test_pruning_again_changes_nothing(case, criterion):
    pattern, sparsity, model = case
    once = pruned(model, pattern, sparsity, criterion)
    assert torch.equal(pruned(once, pattern, sparsity, criterion)[0].weight, once[0].weight)


@quick
@given(cases(), st.sampled_from(WEIGHT_ONLY + CALIBRATED))
def test_a_saved_and_reloaded_model_is_pruned_alike(case, criterion):
    pattern, sparsity, model = case
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other = copy.deepcopy(model)
    other[0].reset_parameters()
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    one, two = (pruned(m, pattern, sparsity, criterion)[0].weight for m in (model, other))
    assert torch.equal(one, two)


@quick
@given(cases(), st.sampled_from([torch.float16, torch.bfloat16, torch.float64]), st.booleans())
def test_types_and_layouts_give_the_same_mask(case, dtype, channels_last):
    pattern, sparsity, model = case
    model = model.to(dtype)
    plain = pruned(copy.deepcopy(model).float(), pattern, sparsity, "magnitude")[0].weight
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    weight = pruned(model, pattern, sparsity, "magnitude")[0].weight
    assert weight.dtype == dtype
    assert weight.stride() == model[0].weight.stride()
    assert torch.equal(weight != 0, plain != 0)
    assert torch.equal(weight[weight != 0], model[0].weight[weight != 0])


@quick
@given(cases(), st.sampled_from(CALIBRATED))
def test_calibrated_criteria_take_any_layout(case, criterion):
    pattern, sparsity, model = case
    plain = pruned(model, pattern, sparsity, criterion)[0].weight
    last = model.to(memory_format=torch.channels_last)
    weight = pruned(last, pattern, sparsity, criterion)[0].weight
    assert int((weight == 0).sum()) == int((plain == 0).sum())
    if criterion not in GRADIENTS:
        assert torch.allclose(weight, plain, atol=1e-3)
        return
    # Gradients differ in their last bits: another weight may go, but one that matters as little.
    model = model.to(memory_format=torch.contiguous_format)
    images = [images for images, _ in batches_for(model)]
    torch.stack([model(part).square().mean() for part in images]).mean().backward()
    matters = (model[0].weight * model[0].weight.grad).detach().abs()
    other = (weight == 0) != (plain == 0)
    if other.any() and isinstance(pattern, Unstructured):
        gone, stayed = matters[other & (weight == 0)], matters[other & (plain == 0)]
        assert gone.sort().values.allclose(stayed.sort().values, rtol=1e-2, atol=1e-6)
    assert torch.equal(weight[weight != 0], model[0].weight[weight != 0])
    assert torch.equal(weight == 0, units_gone(weight, pattern))


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "taylor"])
def test_half_precision_models_are_calibrated(criterion):
    model = nn.Sequential(nn.Conv2d(8, 8, 1)).to(torch.bfloat16)
    weight = pruned(model, NofM(2, 4), 0.5, criterion)[0].weight
    assert weight.dtype == torch.bfloat16
    assert int((weight == 0).sum()) == 32


@quick
@given(cases(), st.sampled_from(WEIGHT_ONLY + CALIBRATED), st.sampled_from([float("nan"), float("-inf")]))
def test_weights_that_are_no_numbers_are_refused_by_name(case, criterion, value):
    pattern, sparsity, model = case
    model[0].weight.data.view(-1)[-1] = value
    with pytest.raises(UserError, match="layer '0' has NaN or infinite weights"):
        pruned(model, pattern, sparsity, criterion)
