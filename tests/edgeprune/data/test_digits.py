"""The embedded images: always alike, and none of them on both sides."""

import torch
from rich.console import Console

from edgeprune.data import digits as embedded
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress


def load(path, size_px):
    return embedded.load(path, Preprocessing(size_px), Progress(Console(quiet=True)))


def test_the_embedded_digits_are_split_evenly_and_always_alike():
    digits = load(None, 64)
    assert digits.train.images.shape == (1347, 3, 64, 64)
    assert digits.held_out.images.shape == (450, 3, 64, 64)
    assert digits.train.images.dtype == torch.uint8
    assert digits.classes == tuple("0123456789")
    assert digits.held_out.labels.bincount().min() >= 43
    assert load(None, 64).sha256 == digits.sha256


def test_no_held_out_digit_is_trained_on():
    digits = load(None, 64)
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert not any(image.numpy().tobytes() in train for image in digits.held_out.images)
