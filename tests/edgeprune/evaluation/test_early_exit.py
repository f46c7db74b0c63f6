"""The threshold: checked against every other one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune.errors import UserError
from edgeprune.evaluation.early_exit import Choice, choose_threshold, confidence, exits
from edgeprune.evaluation.early_exit_result import (
    EarlyExit,
    ExitFiles,
    Measured,
    Times,
    average_time,
    read,
    to_text,
)


def scores_of(sure: list[float], named: list[int]) -> np.ndarray:
    """Scores of two classes with such confidences in those classes."""
    return np.array(
        [[np.log(s), np.log(1 - s)][:: 1 if n == 0 else -1] for s, n in zip(sure, named, strict=True)]
    )


def made(seed: int, images: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An exit that is right more often where it is sure; few values, so that many images tie."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, images)
    right = np.eye(5)[labels]
    front = (right * random.integers(0, 4, (images, 1)) + random.integers(0, 3, (images, 5))).astype(
        np.float32
    )
    full = right * 3 + random.normal(0, 1.3, (images, 5))
    return front, full, labels


def tried(
    front: np.ndarray, full: np.ndarray, labels: np.ndarray, threshold: float | None
) -> tuple[float, float]:
    """Share that exits and combined accuracy, written another way."""
    out = exits(front, threshold)
    return out.mean(), (np.where(out, front.argmax(1), full.argmax(1)) == labels).mean()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("points", [0.0, 0.5, 2.0, 10.0])
def test_no_smaller_threshold_would_do(seed: int, points: float) -> None:
    front, full, labels = made(seed)
    chosen = choose_threshold(front, full, labels, points)
    assert (chosen.exits, chosen.combined) == tried(front, full, labels, chosen.threshold)
    assert chosen.full == (full.argmax(1) == labels).mean()
    assert chosen.front == (front.argmax(1) == labels).mean()
    assert chosen.full - chosen.combined <= points / 100 + 1e-12
    smaller = [t for t in np.unique(confidence(front)) if chosen.threshold is None or t < chosen.threshold]
    for threshold in smaller:
        assert chosen.full - tried(front, full, labels, threshold)[1] > points / 100


def test_images_of_one_confidence_exit_together() -> None:
    front, full = scores_of([0.9, 0.8, 0.8, 0.6], [0, 0, 1, 1]), scores_of([0.9] * 4, [0, 0, 0, 1])
    chosen = choose_threshold(front, full, np.array([0, 0, 0, 1]), 0.0)
    # The third is as sure as the second, and wrong: neither exits, though the second is right.
    assert chosen.exits == 0.25
    assert chosen.threshold == pytest.approx(0.9)


def test_where_each_threshold_costs_too_much_nothing_exits() -> None:
    front, full = scores_of([0.9, 0.8], [1, 1]), scores_of([0.9, 0.9], [0, 1])
    chosen = choose_threshold(front, full, np.array([0, 1]), 1.0)
    assert chosen == Choice(None, 0.0, 1.0, 1.0, 0.5, 2)
    assert not exits(front, None).any()


def test_an_exit_that_is_better_lets_all_out() -> None:
    front, full = scores_of([0.9, 0.6], [0, 1]), scores_of([0.9, 0.9], [1, 1])
    chosen = choose_threshold(front, full, np.array([0, 1]), 0.0)
    assert (chosen.exits, chosen.full, chosen.combined) == (1.0, 0.5, 1.0)


def test_points_are_taken_exactly() -> None:
    """One of 1,000 images is 0.1 points."""
    sure = np.linspace(0.99, 0.6, 1000).tolist()
    front, full = scores_of(sure, [1] + [0] * 999), scores_of([0.9] * 1000, [0] * 1000)
    labels = np.zeros(1000, int)
    assert choose_threshold(front, full, labels, 0.1).exits == 1.0
    assert choose_threshold(front, full, labels, 0.09).exits == 0.0
    # 29 / 100 * 100 is a little less than 29 in binary.
    front = scores_of(sure[:100], [1] * 29 + [0] * 71)
    assert choose_threshold(front, full[:100], labels[:100], 29).exits == 1.0


def test_torch_and_numpy_are_the_same() -> None:
    front, full, labels = made(0)
    tensors = (torch.from_numpy(values) for values in (front, full, labels))
    assert choose_threshold(*tensors, 1.0) == choose_threshold(front, full, labels, 1.0)


def test_large_scores_do_not_overflow() -> None:
    assert confidence(np.array([[1e4, 0.0], [-1e4, -1e4]])).tolist() == [1.0, 0.5]


def test_mistakes_are_one_message() -> None:
    with pytest.raises(UserError) as told:
        choose_threshold(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros(0), -1)
    assert len(told.value.problems) == 3


def test_the_average_follows_from_the_share() -> None:
    average, fraction = average_time([1.0] * 3, [3.0] * 3, [4.0] * 3, 0.5)
    assert (average, fraction) == (2.5, 0.625)
    assert average_time([1.0] * 3, [3.0] * 3, [4.0] * 3, 1.0)[1] == 1.0


def test_a_record_is_read_back(tmp_path: Path) -> None:
    times = Times("host", "this machine", False, 20, 1.0, 2.0, 2.9, 1.5, 0.52)
    files = [
        ExitFiles("t", "a", "b", 1, 2, 3, Measured(9, 0.9, 0.89, 0.8, 0.2, 0.1), t, r)
        for t, r in ((times, None), (None, "no"))
    ]
    choice = Choice(None, 0.0, 0.9, 0.9, 0.8, 100)
    result = EarlyExit(1, "m", "dense", "blocks.4", 0.4, 64, 5, 0.3, choice, "images", tuple(files))
    (tmp_path / "early_exit.json").write_text(to_text(result))
    assert read(tmp_path / "early_exit.json") == result
    assert files[0].measured.lost_points == pytest.approx(1.0)
