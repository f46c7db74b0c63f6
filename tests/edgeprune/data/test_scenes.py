"""Generated scenes: always alike, labelled where the digits are, and no digit on both sides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from edgeprune.data import digits as data
from edgeprune.data import scenes
from edgeprune.data.dataset import Data
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress


def load(size_px: int) -> Data:
    return scenes.load(None, Preprocessing(size_px), Progress(Console(quiet=True)))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 30)
    monkeypatch.setattr(scenes, "HELD_OUT_SCENES", 12)


def test_the_same_scenes_are_made_every_time():
    made, again = load(48), load(48)
    assert made.sha256 == again.sha256
    assert torch.equal(made.train.images, again.train.images)
    assert made.train.images.shape == (30, 3, 48, 48)
    assert made.held_out.labels.shape == (12, 48, 48)
    assert scenes.LABELS is LabelKind.MAP
    assert made.held_out.labels.dtype == torch.int16
    assert made.classes[:3] == ("background", "0", "1")


def test_every_class_is_there_and_scenes_differ():
    made = load(48)
    assert set(made.train.labels.unique().tolist()) == set(range(11))
    assert len({image.numpy().tobytes() for image in made.train.images}) == 30
    assert not torch.equal(made.train.images[:12], made.held_out.images)


@pytest.mark.parametrize(("changed", "part"), [(0, "train"), (1, "held_out")])
def test_no_digit_of_one_side_is_in_a_scene_of_the_other(changed, part, monkeypatch):
    """Other digits on one side change its scenes and leave those of the other as they were."""
    before, sides = load(48), list(data.digits())
    sides[changed] = replace(sides[changed], images=sides[changed].images[:, ::-1])
    monkeypatch.setattr(scenes, "digits", lambda: tuple(sides))
    after = load(48)
    other = {"train": "held_out", "held_out": "train"}[part]
    assert torch.equal(getattr(before, other).images, getattr(after, other).images)
    assert torch.equal(getattr(before, other).labels, getattr(after, other).labels)
    assert not torch.equal(getattr(before, part).images, getattr(after, part).images)


def test_the_digits_of_both_sides_are_other_digits():
    train, held_out = data.digits()
    assert (len(train.labels), len(held_out.labels)) == (1347, 450)
    known = {digit.tobytes() for digit in train.images}
    assert not any(digit.tobytes() in known for digit in held_out.images)


def test_labels_lie_on_the_digit(monkeypatch):
    """A digit that is all ink is a square of one colour: within it there is nothing but noise."""
    monkeypatch.setattr(scenes, "FEWEST_DIGITS", 1)
    monkeypatch.setattr(scenes, "MOST_DIGITS", 1)
    made = scenes.make(data.Digits(np.full((1, 8, 8), 255, np.uint8), np.array([7])), 6, 48, seed=3)
    for image, classes in zip(made.images.float(), made.labels, strict=True):
        assert set(classes.unique().tolist()) == {0, 8}
        rows, columns = (classes == 8).nonzero(as_tuple=True)
        assert len(rows) == (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)
        inside = image[:, classes == 8]
        assert float(inside.std(1).max()) < 1.5 * scenes.NOISE
        assert float((inside.mean(1) - image[:, classes == 0].mean(1)).abs().max()) > 5 * scenes.NOISE


def test_only_ink_is_labelled(monkeypatch):
    """Of a digit whose left half is ink, half of its square."""
    monkeypatch.setattr(scenes, "FEWEST_DIGITS", 1)
    monkeypatch.setattr(scenes, "MOST_DIGITS", 1)
    half = np.zeros((1, 8, 8), np.uint8)
    half[:, :, :4] = 255
    for classes in scenes.make(data.Digits(half, np.array([7])), 6, 64, seed=3).labels:
        rows, columns = (classes == 8).nonzero(as_tuple=True)
        assert 0.4 < float(columns.max() - columns.min() + 1) / float(rows.max() - rows.min() + 1) < 0.6
