"""Rounding that keeps the sum of a channel's weights, against the nearest values."""

import numpy as np
import pytest

from converters.float16 import keeping_sums


def weights(shape, zeros=0.0):
    random = np.random.default_rng(0)
    values = random.normal(0, 0.3, shape).astype(np.float32)
    values[random.random(shape) < zeros] = 0
    return values


def sums_off(rounded, values):
    errors = rounded.astype(np.float64) - values
    return np.abs(errors.reshape(len(values), -1).sum(1))


@pytest.mark.parametrize("shape", [(32, 24, 1, 1), (48, 1, 3, 3), (16, 3, 3, 3), (8, 40)])
def test_sums_are_kept_and_each_value_is_beside_its_weight(shape):
    values = weights(shape, zeros=0.3)
    rounded, nearest = keeping_sums(values), values.astype(np.float16)
    assert rounded.dtype == np.float16
    assert rounded.shape == shape
    assert (sums_off(rounded, values) <= sums_off(nearest, values)).all()
    assert sums_off(rounded, values).mean() < 0.6 * sums_off(nearest, values).mean()
    one_step = np.spacing(np.abs(nearest)).astype(np.float64)
    assert (np.abs(rounded.astype(np.float64) - values) <= one_step).all()
    np.testing.assert_array_equal(rounded == 0, values == 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 65504.0, 6e-8])
def test_what_float16_has_stays(value):
    np.testing.assert_array_equal(keeping_sums(np.full((2, 3), value, np.float32)), np.float16(value))
