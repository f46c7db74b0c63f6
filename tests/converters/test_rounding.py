"""What rounding explains: weights moved within their half steps, as rounding moved them."""

from __future__ import annotations

import numpy as np
import pytest

from converters import rounding

CHANNELS, WIDTH, EQUAL = 16, 1000, 800


def standardised() -> np.ndarray:
    """Weights, four in five of each output channel one value: zeros, under a standardised weight."""
    random = np.random.default_rng(0)
    weights = random.normal(0, 1, (CHANNELS, WIDTH))
    weights[:, :EQUAL] = random.normal(-0.3, 0.03, (CHANNELS, 1))
    return weights


def int8(weights: np.ndarray) -> np.ndarray:
    scale = np.abs(weights).max(1, keepdims=True) / 127
    return np.rint(weights / scale) * scale


def test_equal_weights_are_rounded_alike_and_that_explains_what_it_does() -> None:
    exact, inputs = standardised(), np.random.default_rng(1).uniform(0, 1, WIDTH)
    stored = int8(exact)
    steps = rounding.half_steps(stored, "int8")

    def run(random: np.random.Generator) -> list[np.ndarray]:
        return [rounding.moved(stored, steps, random) @ inputs]

    error = rounding.rms([stored @ inputs], [exact @ inputs])
    draws = [rounding.rms(run(np.random.default_rng(seed)), [stored @ inputs]) for seed in range(8)]
    # As large as what rounding did, where each weight moved by itself makes a tenth of it.
    assert error == pytest.approx(np.mean(draws), rel=0.5)
    alone = [
        rounding.rms(
            [(stored + np.random.default_rng(seed).uniform(-1, 1, stored.shape) * steps) @ inputs],
            [stored @ inputs],
        )
        for seed in range(8)
    ]
    assert rounding.EXPLAINED * np.mean(alone) < error < rounding.explained([stored @ inputs], error, run)


def test_other_weights_move_by_themselves_and_zeros_stay() -> None:
    random = np.random.default_rng(0)
    stored = int8(random.normal(0, 1, (CHANNELS, WIDTH)))
    stored[:, ::2] = 0
    steps = rounding.half_steps(stored, "int8")
    found = (rounding.moved(stored, steps, random) - stored) / steps
    assert not found[:, ::2].any()
    assert all(len(np.unique(row)) > 0.49 * WIDTH for row in found)
    assert np.abs(found).max() <= 1


def test_entries_of_a_table_stand_for_many_values() -> None:
    stored = np.where(np.random.default_rng(0).uniform(size=(CHANNELS, WIDTH)) < 0.7, 0.25, -1.0)
    steps = rounding.half_steps(stored, "table of 2")
    found = rounding.moved(stored, steps, np.random.default_rng(0), table=True) - stored
    assert all(len(np.unique(row)) == WIDTH for row in found)
