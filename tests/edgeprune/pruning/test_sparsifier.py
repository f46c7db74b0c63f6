import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_masks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgeprune.errors import UserError
from edgeprune.pruning import (
    Block,
    Channels,
    Cubic,
    NofM,
    OneShot,
    Rule,
    Sparsifier,
    Stepwise,
    Unstructured,
    prune,
    prune_by_rules,
    select,
)


def small_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def test_only_1x1_and_linear_layers_are_pruned_by_default():
    model = small_model()
    assert prune(model, Block(1, 4), 0.75) == {"2": 0.75, "4": 0.75}
    assert bool((model[0].weight != 0).all())
    assert bool((model[1].weight != 0).all())


def test_the_smallest_blocks_go():
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1, 9, 9], [5, 5, 2, 2]])
    prune(nn.Sequential(layer), Block(1, 2), 0.5)
    assert layer.weight.tolist() == [[0, 0, 9, 9], [5, 5, 0, 0]]


def test_momentum_cannot_revive_a_pruned_weight():
    model = small_model()
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], OneShot())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(4, 3, 5, 5)
    masks = []
    for _ in range(4):
        optimizer.zero_grad()
        model[:3](images).square().sum().backward()
        optimizer.step()
        sparsifier.step()
        masks.append(model[2].weight.detach() == 0)
    assert int(masks[0].sum()) == 64
    assert all(torch.equal(masks[0], mask) for mask in masks)


def test_zeros_grow_with_the_schedule_and_end_at_the_target():
    model = small_model()
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.8)], Cubic(steps=10))
    zeros = []
    for _ in range(12):
        sparsifier.step()
        zeros.append(float((model[2].weight == 0).float().mean()))
        assert sparsifier.sparsity == pytest.approx(zeros[-1], abs=0.01)
    assert zeros == sorted(zeros)
    assert zeros[0] == 0
    assert zeros[10] == zeros[11] == pytest.approx(0.8, abs=1 / 128)


def test_each_round_brings_an_equal_part_of_the_zeros():
    model = small_model()
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.75)], Stepwise(rounds=3, steps=2))
    zeros = []
    for _ in range(6):
        sparsifier.step()
        zeros.append(float((model[2].weight == 0).float().mean()))
    assert zeros == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_finalize_completes_a_schedule_that_was_cut_short():
    model = small_model()
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], Cubic(steps=100))
    sparsifier.step()
    assert sparsifier.finalize() == {"2": 0.5, "4": 0.5}


def test_a_resumed_sparsifier_goes_on_as_if_never_stopped():
    rules, schedule = [Rule(Unstructured(), 0.8)], Cubic(steps=10, every=3)
    model = small_model()
    one = Sparsifier(model, rules, schedule)
    for _ in range(5):
        one.step()
    other_model = copy.deepcopy(model)
    other = Sparsifier(other_model, rules, schedule)
    other.load_state_dict(one.state_dict())
    for _ in range(6):
        for sparsifier, m in ((one, model), (other, other_model)):
            m[2].weight.data += 0.01
            sparsifier.step()
        assert torch.equal(model[2].weight, other_model[2].weight)


def test_a_pruned_weight_that_grows_aside_comes_back():
    """Rounds end at 25 %, which is no weight, and at 50 %, which is one, after steps 0 and 2."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    sparsifier = Sparsifier(
        nn.Sequential(layer), [Rule(Unstructured(), 0.5)], Stepwise(rounds=2, steps=2), regrow=True
    )
    seen = []
    for _ in range(4):
        sparsifier.step()
        seen.append(layer.weight.flatten().tolist())
        layer.weight.data[0, 3] += 2.0  # What an optimizer does to the pruned weight.
    # Aside it went from 1 to 5: the largest of all when masks are chosen again.
    assert seen == [[4, 3, 2, 0], [4, 3, 2, 0], [4, 0, 0, 5], [4, 0, 0, 7]]
    layer.weight.data[0, 2] += 9.0  # After the last choice nothing comes back.
    sparsifier.step()
    assert layer.weight.flatten().tolist() == [4, 0, 0, 9]
    assert sparsifier.finalize() == {"0": 0.5}


def test_regrowing_goes_on_where_it_was_resumed_and_leaves_no_trace():
    rules, schedule = [Rule(Unstructured(), 0.5)], Stepwise(rounds=3, steps=2)
    model = small_model()
    one = Sparsifier(model, rules, schedule, regrow=True)
    one.step()
    other_model = copy.deepcopy(model)
    other = Sparsifier(other_model, rules, schedule, regrow=True)
    other.load_state_dict(one.state_dict())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = torch.randn(model[2].weight.shape, generator=generator)
        for sparsifier, m in ((one, model), (other, other_model)):
            m[2].weight.data += moved
            sparsifier.step()
        assert torch.equal(model[2].weight, other_model[2].weight)
    names = set(model.state_dict())
    assert one.finalize() == {"2": 0.5, "4": 0.5}
    assert set(model.state_dict()) == names


def test_the_model_keeps_no_trace():
    model = small_model()
    before = set(model.state_dict())
    prune(model, Unstructured(), 0.5)
    assert set(model.state_dict()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_finalize_leaves_plain_weights(criterion):
    model, sparsifier, _ = trained(criterion)
    sparsifier.finalize()
    fresh = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    assert set(model.state_dict()) == set(fresh.state_dict())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert not dict(module.named_buffers())
    for name, parameter in model.named_parameters():
        assert type(parameter) is nn.Parameter, name
        assert parameter._backward_hooks is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_and_layout_is_pruned_exactly(dtype):
    model = small_model().to(dtype).to(memory_format=torch.channels_last)
    assert prune(model, Block(1, 4), 0.5) == {"2": 0.5, "4": 0.5}
    assert model[2].weight.dtype == dtype


def test_pruning_twice_changes_nothing():
    model = small_model()
    prune(model, Block(1, 4), 0.5)
    before = copy.deepcopy(model.state_dict())
    prune(model, Block(1, 4), 0.5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_default_pattern_that_does_not_divide_is_reported_and_left_dense():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    sparsifier = Sparsifier(model, [Rule(Block(1, 4), 0.5)], OneShot())
    assert sparsifier.exceptions == {"0": "6 input channels are not a multiple of 4"}
    assert list(sparsifier.finalize()) == ["1"]


def test_a_rule_overrides_the_default():
    model = small_model()
    rules = [Rule(Unstructured(), 0.8), Rule(Unstructured(), 0.0, "4")]
    assert Sparsifier(model, rules, OneShot()).finalize() == {"2": pytest.approx(0.8, abs=0.01), "4": 0}


def trained(criterion: str, steps: int = 6) -> tuple[nn.Module, Sparsifier, list[torch.Tensor]]:
    """A small regression, pruned while it trains, and the masks on the way."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], Cubic(steps=4), criterion=criterion)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = []
    for _ in range(steps):
        images = torch.randn(16, 8)
        optimizer.zero_grad()
        (model(images) - images.flip(1)).square().mean().backward()
        optimizer.step()
        sparsifier.step()
        masks.append(model[0].weight.detach() == 0)
    return model, sparsifier, masks


@pytest.mark.parametrize("criterion", ["magnitude", "random", "taylor", "snip", "movement", "lamp"])
def test_every_criterion_of_training_grows_zeros_that_stay(criterion):
    model, sparsifier, masks = trained(criterion)
    for earlier, later in itertools.pairwise(masks):
        assert not bool((earlier & ~later).any())
    zeros = sparsifier.finalize()
    assert int(masks[-1].sum()) == 64 * zeros["0"]
    assert int(torch.count_nonzero(model[2].weight)) == 64 * (1 - zeros["2"])
    assert zeros["0"] + zeros["2"] == 1
    if criterion != "lamp":  # That one compares layers.
        assert zeros["0"] == 0.5


def test_momentum_cannot_revive_a_pruned_weight_when_masks_are_chosen_anew():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], Cubic(steps=3))
    for _ in range(3):
        sparsifier.step()
    assert model[0].weight.tolist() == [[0, 0, 3, 4]]
    model[0].weight.data[0, 0] = 100.0  # What an optimizer with momentum may do before the next choice.
    sparsifier.step()
    assert model[0].weight.tolist() == [[0, 0, 3, 4]]


def test_movement_adds_up_over_training_and_keeps_what_grows():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[5.0, 0.5]])
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], Cubic(steps=2), criterion="movement")
    # The large weight moves towards zero, the small one away from it.
    for gradient in ([[1.0, -1.0]], [[1.0, -2.0]]):
        model[0].weight.grad = torch.tensor(gradient)
        sparsifier.step()
    gathered = sparsifier.state_dict()["gathered"][0]
    assert gathered.tolist() == [[-5.0 - 5.0, 0.5 + 1.0]]
    assert sparsifier.finalize() == {"0": 0.5}
    assert model[0].weight.tolist() == [[0.0, 0.5]]


def test_taylor_forgets_once_masks_are_chosen_and_movement_does_not():
    for criterion, steps in (("taylor", 1), ("movement", 3)):
        model = nn.Sequential(nn.Linear(4, 4))
        sparsifier = Sparsifier(
            model, [Rule(Unstructured(), 0.5)], Cubic(steps=8, every=2), criterion=criterion
        )
        for _ in range(3):  # Masks are chosen at the first and the third.
            model[0].weight.grad = torch.ones(4, 4)
            sparsifier.step()
        state = sparsifier.state_dict()
        model[0].weight.grad = torch.ones(4, 4)
        sparsifier.step()
        assert state["gather_anew"] == (criterion == "taylor")
        assert sparsifier.state_dict()["gathered_steps"] == (1 if criterion == "taylor" else 4), steps


def test_a_resumed_sparsifier_remembers_what_gradients_told():
    model, one, _ = trained("movement", steps=3)
    other_model = copy.deepcopy(model)
    other = Sparsifier(other_model, [Rule(Unstructured(), 0.5)], Cubic(steps=4), criterion="movement")
    other.load_state_dict(one.state_dict())
    for m, sparsifier in ((model, one), (other_model, other)):
        for layer in (m[0], m[2]):
            layer.weight.grad = torch.linspace(-1, 1, 64).view(8, 8)
        sparsifier.step()
        sparsifier.step()
    assert torch.equal(model[0].weight, other_model[0].weight)


def test_missing_gradients_are_refused_by_name():
    model = small_model()
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], OneShot(), criterion="movement")
    with pytest.raises(UserError, match="needs gradients, and layer '2' has none: call step"):
        sparsifier.step()
    with pytest.raises(UserError, match="has seen no training step"):
        sparsifier.finalize()


def test_gradients_that_are_no_numbers_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], OneShot(), criterion="movement")
    model[0].weight.grad = torch.full((4, 4), float("nan"))
    with pytest.raises(UserError, match="layer '0': criterion 'movement' gives NaN or infinite importance"):
        sparsifier.step()


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "bn_scale"])
def test_criteria_of_calibration_are_sent_to_prune(criterion):
    with pytest.raises(UserError, match="needs calibration images, which a Sparsifier does not see: prune"):
        Sparsifier(small_model(), [Rule(Unstructured(), 0.5)], OneShot(), criterion=criterion)


def test_the_last_layer_keeps_its_channels_unless_a_rule_names_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sparsifier = Sparsifier(model, [Rule(Channels(), 0.5)], OneShot())
    assert sparsifier.exceptions == {"1": "the last layer's channels are the model's answers"}
    assert sparsifier.finalize() == {"0": 0.5}
    assert prune(model, Channels(), 0.5, layers=["1"]) == {"1": 0.5}


BAD_RULES = {
    "sparsity 1.7 is not in [0, 1)": [Rule(Unstructured(), 1.7)],
    "sparsity -0.1 for layers '2' is not in [0, 1)": [Rule(Unstructured(), -0.1, "2")],
    "layer rule 'head.*' matches no convolution or linear layer": [Rule(Unstructured(), 0.5, "head.*")],
    "layer '2' is matched by two rules: '2' and '[2-4]'": [
        Rule(Unstructured(), 0.5, "2"),
        Rule(Unstructured(), 0.6, "[2-4]"),
    ],
    "layer '4' (10, 16): 10 output channels are not a multiple of 4": [Rule(Block(4, 1), 0.5, "4")],
    "sparsity 0.6 does not fit 2 of 4: it must be 0.5": [Rule(NofM(2, 4), 0.6)],
}


@pytest.mark.parametrize("message", BAD_RULES)
def test_bad_rules_are_refused_by_name(message):
    with pytest.raises(UserError) as caught:
        select(small_model(), BAD_RULES[message])
    assert message in str(caught.value)


def test_all_mistakes_come_in_one_message():
    with pytest.raises(UserError) as caught:
        select(small_model(), [rule for rules in BAD_RULES.values() for rule in rules])
    assert len(caught.value.problems) >= len(BAD_RULES)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_cannot_be_ranked_are_refused_by_name(value):
    model = small_model()
    model[2].weight.data[0, 0] = value
    with pytest.raises(UserError, match="layer '2' has NaN or infinite weights"):
        prune(model, Unstructured(), 0.5)


def test_unknown_criterion():
    with pytest.raises(UserError, match="unknown criterion 'size': choose from magnitude"):
        prune(small_model(), Unstructured(), 0.5, criterion="size")


def test_cubic_schedule_refuses_no_steps():
    with pytest.raises(UserError, match="must be 1 or more"):
        Cubic(steps=0)


def four(*weights: float) -> nn.Linear:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[float(weight) for weight in weights]])
    return layer


def test_an_average_of_the_weights_is_not_added_to_what_is_held_aside():
    """With a running average, 4 3 2 1 over four steps ended as 4, 0, 3.62, 0."""
    layer = four(4, 3, 2, 1)
    sparsifier = Sparsifier(layer, [Rule(Unstructured(), 0.5)], Cubic(4), regrow=True)
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(4):
        sparsifier.step()
        averaged.update_parameters(layer)
    layer.weight.data.copy_(averaged.module.weight)
    sparsifier.finalize()
    assert layer.weight.tolist() == [[4, 3, 0, 0]]


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_weight_decay_reaches_what_is_held_aside(make):
    """Under decay alone 4, 2.5, 2, 1 ended as 0.54, 0, 0, 0.37: all shrink alike, and the largest stay."""
    layer = four(4, 2.5, 2, 1)
    sparsifier = Sparsifier(layer, [Rule(Unstructured(), 0.5)], Cubic(10), regrow=True)
    optimizer = make(layer.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(19):
        layer.weight.grad = torch.zeros(1, 4)
        optimizer.step()
        sparsifier.step()
    sparsifier.finalize()
    assert layer.weight[0].tolist() == pytest.approx([4 * 0.9**19, 2.5 * 0.9**19, 0, 0], rel=1e-5)


def test_optimizers_of_other_models_do_not_move_what_is_held_aside():
    layer, other = four(4, 3, 2, 1), nn.Linear(2, 2)
    sparsifier = Sparsifier(layer, [Rule(Unstructured(), 0.5)], Cubic(4), regrow=True)
    for _ in range(3):
        sparsifier.step()
    before = layer.weight.clone()
    other.weight.grad = torch.zeros(2, 2)
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("place", [torch.float64, torch.bfloat16, "meta"])
def test_masks_follow_a_model_that_moves(place):
    layer = four(4, 3, 2, 1)
    sparsifier = Sparsifier(layer, [Rule(Unstructured(), 0.5)], OneShot())
    sparsifier.step()
    layer.to(place)
    sparsifier.step()
    if place != "meta":
        assert layer.weight.tolist() == [[4, 3, 0, 0]]
        assert layer.weight.dtype == place


def test_lamp_ranks_blocks_by_their_norm_and_layers_together():
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.6, 0.6, 0.6]])
    prune(nn.Sequential(layer), Block(1, 4), 0.5, criterion="lamp")
    assert layer.weight.tolist() == [[0, 0, 0, 0], [pytest.approx(0.6)] * 4]
    # Scores of a flat layer are 1, 1/2, 1/3, 1/4, of a steep one 1 and next to nothing.
    flat, steep = four(1, 1, 1, 1), four(1000, 100, 10, 1)
    for zeros in (
        prune(nn.Sequential(flat, steep), Unstructured(), 0.375, criterion="lamp"),
        Sparsifier(
            nn.Sequential(flat, steep), [Rule(Unstructured(), 0.375)], OneShot(), criterion="lamp"
        ).finalize(),
    ):
        assert zeros == {"0": 0.0, "1": 0.75}


@pytest.mark.parametrize(
    "computed",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        lambda layer: torch_masks.l1_unstructured(layer, "weight", 0.25),
    ],
)
def test_weights_that_are_computed_are_refused_not_pruned_in_vain(computed):
    model = nn.Sequential(nn.Linear(8, 4), computed(nn.Linear(8, 4)))
    with pytest.raises(UserError, match="layer '1': its weight is computed from others"):
        prune(model, Unstructured(), 0.5)
    assert bool((model[0].weight != 0).all())
    assert prune(model, Unstructured(), 0.5, layers=["0"]) == {"0": 0.5}


def test_a_stage_is_left_dense_by_a_sparsity_of_nothing():
    model = small_model()
    rules = [Rule(Block(1, 4), 0.75), Rule(Block(1, 4), 0, "[01]"), Rule(NofM(2, 4), 0, "2")]
    sparsifier = Sparsifier(model, rules, OneShot())
    assert sparsifier.finalize() == {"2": 0.0, "4": 0.75}
    assert sparsifier.exceptions == {"0": "its rule leaves it dense", "1": "its rule leaves it dense"}


def test_a_weight_that_two_layers_share_is_pruned_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model[0].weight.data = torch.arange(1.0, 17).view(4, 4)
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], Cubic(2), regrow=True)
    for _ in range(3):
        sparsifier.step()
    assert sparsifier.finalize() == {"0": 0.5}
    assert model[0].weight is model[1].weight
    assert model[0].weight.flatten().tolist() == [0] * 8 + list(range(9, 17))
    with pytest.raises(UserError, match="layers '0' and '1' share one weight, and their rules differ"):
        prune_by_rules(model, [Rule(Unstructured(), 0.5, "0"), Rule(Unstructured(), 0.7, "1")])


def test_the_joint_projection_of_attention_is_named():
    model = nn.TransformerEncoderLayer(8, 2, 16)
    reason = "the joint projection of nn.MultiheadAttention is no layer and is not pruned"
    assert prune(model, Unstructured(), 0.5).left == {"self_attn.in_proj_weight": reason}
    sparsifier = Sparsifier(model, [Rule(Unstructured(), 0.5)], OneShot())
    assert sparsifier.exceptions == {"self_attn.in_proj_weight": reason}
