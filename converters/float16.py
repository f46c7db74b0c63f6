"""Weights rounded to float16 so that a layer's answers keep their mean."""

from __future__ import annotations

import numpy as np


def keeping_sums(weights: np.ndarray) -> np.ndarray:
    """Round to float16, the errors of each output channel adding up to almost nothing.

    A layer mostly takes activations of one sign, alike in neighbouring pixels: errors that add up move every
    answer, errors that cancel move few. Each weight becomes one of the two float16 values around it, the
    nearest one but for the few weights whose rounding costs least to turn. Zeros stay zeros.

    Args:
        weights: float32, output channels first.

    Returns:
        The same shape, float16.

    >>> weights = np.full((1, 5), 1 + 0.4 / 1024, np.float32)      # 0.4 of float16's steps above 1
    >>> (keeping_sums(weights).astype(float) - 1).tolist()          # two of five, one step up
    [[0.0009765625, 0.0009765625, 0.0, 0.0, 0.0]]
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    nearest = rows.astype(np.float16)
    errors = nearest - rows
    sums = errors.sum(1, keepdims=True)
    towards = np.where(sums > 0, -np.inf, np.inf).astype(np.float16)
    others = np.nextafter(nearest, towards)
    steps = np.abs(others.astype(np.float64) - nearest)
    turnable = (np.sign(errors) == np.sign(sums)) & (rows != 0) & np.isfinite(others)
    # First those that are almost half a step off, whose other neighbour is hardly farther away.
    costs = np.where(turnable, 1 - 2 * np.abs(errors) / np.where(steps > 0, steps, 1), np.inf)
    order = np.argsort(costs, axis=1, kind="stable")
    moved = np.pad(np.take_along_axis(np.where(turnable, steps, 0), order, 1).cumsum(1), ((0, 0), (1, 0)))
    counts = np.abs(np.abs(sums) - moved).argmin(1)
    turned = np.zeros_like(turnable)
    np.put_along_axis(turned, order, np.arange(rows.shape[1]) < counts[:, None], 1)
    return np.where(turned & turnable, others, nearest).reshape(weights.shape)
