"""What training does beside stepping: gradients added up, weights averaged."""

import copy
import dataclasses

import pytest
import torch
from rich.console import Console
from torch import nn

from converters.facts import Normalization
from edgeprune.data import digits as embedded
from edgeprune.data.dataset import InMemory, Subset
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from edgeprune.pruning import Block, OneShot, Rule, Sparsifier
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training import augment, predict
from edgeprune.training import loop as training
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Hooks, Setting


@pytest.fixture(scope="module")
def digits() -> Setting:
    loaded = embedded.load(None, Preprocessing(32), Progress(Console(quiet=True)))
    return Setting(
        loaded, TASKS["classification"], Normalization((0.5,) * 3, (0.5,) * 3), Augment(shift_px=2), seed=0
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def train(
    model: nn.Module, setting: Setting, fit: TrainConfig, sparsifier: Sparsifier | None = None
) -> list[dict]:
    """Train and return the states kept after each epoch."""
    states: list[dict] = []

    def save(state: dict) -> None:
        states.append(copy.deepcopy(state))

    hooks = Hooks(load=lambda: None, save=save, show=lambda *_, **__: None)
    training.train(model, setting, fit, hooks, sparsifier=sparsifier)
    return states


def test_gradients_added_up_are_those_of_one_large_batch(digits):
    """No batch norm and no augmentation, so that only the sum of the gradients could differ."""
    plain = dataclasses.replace(digits, augment=Augment(shift_px=0))
    whole, parts = network(), network()
    train(whole, plain, TrainConfig(epochs=1, batch_size=128))
    train(parts, plain, TrainConfig(epochs=1, batch_size=32, accumulate=4))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_step_larger_than_the_data_is_refused(digits):
    with pytest.raises(UserError, match="more than the 1347 training images"):
        train(network(), digits, TrainConfig(epochs=1, batch_size=64, accumulate=100))


def test_the_running_average_is_kept_and_pruned_weights_stay_zero(digits):
    fit = TrainConfig(epochs=2, batch_size=64, ema=0.9)
    averaged, last = network(), network()
    rules = [Rule(Block(1, 4), 0.75)]
    states = train(averaged, digits, fit, Sparsifier(averaged, rules, OneShot()))
    train(last, digits, TrainConfig(epochs=2, batch_size=64), Sparsifier(last, rules, OneShot()))
    average = states[-1]["averaged"]
    first = averaged[0].weight
    torch.testing.assert_close(first, average["module.0.weight"])
    assert not torch.allclose(first, last[0].weight)
    assert float((averaged[3].weight == 0).double().mean()) == 0.75


def test_a_run_with_an_average_goes_on_where_it_stopped(digits):
    fit = TrainConfig(epochs=2, batch_size=64, ema=0.9)
    whole, resumed = network(), network()
    states = train(whole, digits, fit)
    hooks = Hooks(load=lambda: states[0], save=lambda _: None, show=lambda *_, **__: None)
    training.train(resumed, digits, fit, hooks)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_grey_square_lies_somewhere_in_each_image():
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    erased = augment.erased(images, 8, torch.Generator().manual_seed(0)) == augment.GREY
    assert torch.equal(erased[:, 0], erased[:, 2])
    sizes = erased[:, 0].sum((1, 2))
    assert int(sizes.max()) == 64
    assert int(sizes.min()) >= 16
    assert erased[:, 0].any(0).all()  # Every pixel is covered in some image.


def test_a_student_moves_to_its_teacher_without_labels(digits):
    """Labels that are all one class teach nothing; the teacher's answers alone make the student like it."""
    teacher = network()
    train(teacher, digits, TrainConfig(epochs=4, batch_size=64))
    blind = dataclasses.replace(
        digits, data=dataclasses.replace(digits.data, train=_all_zero(digits.data.train))
    )
    student = network()
    hooks = Hooks(load=lambda: None, save=lambda _: None, show=lambda *_, **__: None)
    fit = TrainConfig(epochs=4, batch_size=64)
    training.train(student, blind, fit, hooks, teacher=copy.deepcopy(teacher), distill=1.0)
    held_out = digits.data.held_out
    taught, learnt = (predict.predict(model, held_out, digits.normalization) for model in (teacher, student))
    assert score(digits.task, taught, held_out.labels) > 0.8
    assert float((taught.argmax(1) == learnt.argmax(1)).double().mean()) > 0.9


def _all_zero(split: InMemory) -> InMemory:
    return InMemory(split.images, torch.zeros_like(split.labels))


def test_batch_norms_end_with_the_statistics_of_the_training_images(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 10))
    train(model, digits, TrainConfig(epochs=1, batch_size=64))
    images = predict.normalized(digits.data.train.images, digits.normalization)
    with torch.no_grad():
        maps = model[0](images)
    torch.testing.assert_close(model[1].running_mean, maps.mean((0, 2, 3)), atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(model[1].running_var, maps.var((0, 2, 3)), atol=1e-3, rtol=2e-2)


def test_images_grow_to_full_size_and_end_with_it():
    loaded = embedded.load(None, Preprocessing(64), Progress(Console(quiet=True)))
    setting = Setting(
        loaded, TASKS["classification"], Normalization((0.5,) * 3, (0.5,) * 3), Augment(shift_px=2), seed=0
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 8, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    seen: list[tuple[bool, int]] = []  # Whether it trained, and the side of its images.

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if (module.training, inputs[0].shape[-1]) != (seen[-1] if seen else None):
            seen.append((module.training, inputs[0].shape[-1]))

    model.register_forward_pre_hook(note)
    train(model, setting, TrainConfig(epochs=3, batch_size=449, first_px=32))
    each_epoch = [(trains, side) for side in (32, 48, 64) for trains in (True, False)]
    assert seen == [*each_epoch, (True, 64)]  # Batch norms are measured anew on images of full size.


@pytest.mark.slow
@pytest.mark.skipif(not training.cpp_compiler(), reason="torch.compile needs a C++ compiler")
def test_a_compiled_training_is_the_same_training(digits):
    """Weights and zeros of the model itself, in which nothing compiled is left."""
    rules = [Rule(Block(1, 4), 0.5)]
    models, states = [network(), network()], []
    for model, compile in zip(models, (False, True), strict=True):
        fit = TrainConfig(epochs=1, batch_size=449, compile=compile)
        states.append(train(model, digits, fit, Sparsifier(model, rules, OneShot())))
    assert list(states[0][0]["model"]) == list(states[1][0]["model"])
    for plain, compiled in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(plain, compiled, atol=1e-5, rtol=1e-3)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_goes_on_within_an_epoch(digits, optimizer):
    """Killed in the middle of its second epoch: dropout, masks, what is drawn and the averages go on."""
    fit = TrainConfig(
        epochs=2,
        batch_size=32,
        optimizer=optimizer,
        schedule="cosine",
        clip_norm=1.0,
        ema=0.9,
        balanced=True,
    )
    few = dataclasses.replace(digits.data, train=Subset(digits.data.train, torch.arange(256)))
    setting = dataclasses.replace(digits, augment=Augment("strong", shift_px=2), data=few)
    states: list[dict] = []

    def killed_later(state: dict) -> None:
        states.append(copy.deepcopy(state))
        if len(states) == 12:
            raise KilledError

    def run(hooks: Hooks) -> tuple[nn.Module, tuple]:
        model = network()
        model.insert(1, nn.Dropout(0.2))
        sparsifier = Sparsifier(model, [Rule(Block(1, 4), 0.5)], OneShot(), regrow=True)
        return model, training.train(model, setting, fit, hooks, sparsifier=sparsifier)[0]

    whole, history = run(Hooks(load=lambda: None, save=lambda _: None, show=lambda *_, **__: None))
    with pytest.raises(KilledError):
        run(Hooks(lambda: None, killed_later, lambda *_, **__: None, save_seconds=0.0))
    assert (states[-1]["epoch"], states[-1]["within"]["batches"]) == (1, 3)
    resumed, again = run(Hooks(lambda: states[-1], lambda _: None, lambda *_, **__: None))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [epoch["loss"] for epoch in again] == [epoch["loss"] for epoch in history]


def test_the_best_epoch_on_images_set_aside_is_kept_and_training_stops_early(digits):
    """A learning rate that ruins what the first epochs learnt."""
    fit = TrainConfig(
        epochs=8, batch_size=64, optimizer="sgd", learning_rate=3.0, warmup_fraction=0.9,
        validation_fraction=0.2, patience=2,
    )  # fmt: skip
    model = network()
    states = train(model, digits, fit)
    validated = [epoch["validation"] for epoch in states[-1]["history"]]
    best = validated.index(max(validated))
    assert len(states) == best + 3 < 8
    first = model[0].weight
    torch.testing.assert_close(first, states[best]["model"]["0.weight"])
    assert not torch.allclose(first, states[-1]["model"]["0.weight"])


def test_images_set_aside_are_not_trained_on(digits):
    train_split, aside = training.divided(digits.data.train, 0.25, digits.seed)
    assert aside is not None
    assert sorted([*train_split.indices.tolist(), *aside.indices.tolist()]) == list(range(1347))
    assert len(aside) == 337
    setting = dataclasses.replace(digits, augment=Augment("none"))
    seen: list[int] = []
    values = {tuple(digits.data.train.images[i].flatten().tolist()[:600]): i for i in aside.indices.tolist()}
    model = network()
    mean = 0.5

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module.training:
            pixels = ((inputs[0] * mean + mean) * 255).round().long()
            seen.extend(values.get(tuple(row[:600]), -1) for row in pixels.flatten(1).tolist())

    model.register_forward_pre_hook(note)
    train(model, setting, TrainConfig(epochs=1, batch_size=64, validation_fraction=0.25))
    assert len(seen) > 900
    assert max(seen) == -1


def test_classes_come_equally_often_however_many_images_they_have(digits):
    rare = torch.cat(
        [
            torch.arange(1347)[digits.data.train.labels != 3],
            torch.arange(1347)[digits.data.train.labels == 3][:2],
        ]
    )
    data = dataclasses.replace(digits.data, train=Subset(digits.data.train, rare))
    drawn = training.shares(data.train.labels)
    sums = torch.zeros(10, dtype=torch.double).index_add(0, data.train.labels, drawn)
    torch.testing.assert_close(sums, torch.ones(10, dtype=torch.double))
    with pytest.raises(UserError, match="balanced: these images have no single class each"):
        training.shares(["boxes", "boxes"])


def test_augmented_examples_are_what_a_training_begins_with(digits):
    setting = dataclasses.replace(digits, augment=Augment("standard"))
    seen: list[torch.Tensor] = []
    model = network()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    train(model, setting, TrainConfig(epochs=1, batch_size=1347))
    examples = training.augmented_examples(setting, 16)
    assert examples.shape == (16, 3, 32, 32)
    assert not torch.equal(examples[0], examples[1])
    first = predict.normalized(examples[:1], setting.normalization)[0]
    assert any(torch.allclose(first, image, atol=1e-6) for image in seen[0])
