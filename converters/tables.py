"""Lookup tables for weights: k-means on one axis, exact about zeros and the same on every machine."""

from __future__ import annotations

import numpy as np

_GROUPS = 512
_MAX_ROUNDS = 100


def cluster(values: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Place `size` table entries so that the squared distance from values to nearest entries is small.

    On one axis a cluster is a run of sorted values, and the best runs are found exactly by dynamic
    programming (Wang & Song, "Ckmeans.1d.dp", The R Journal, 2011), over at most `_GROUPS` groups of
    neighbouring values; Lloyd's algorithm then moves the borders within groups. Lloyd's alone, from evenly
    filled quantiles, leaves up to four times the error where some rows are far larger than others.

    Args:
        values: distinct, ascending.
        counts: how often each occurs.
        size: of the table; fewer entries come back where there are fewer values.

    Returns:
        The entries, ascending, float64.
    """
    values = values.astype(np.float64)
    if len(values) <= size:
        return values
    weight = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    moment = np.concatenate([[0.0], np.cumsum(values * counts)])
    square = np.concatenate([[0.0], np.cumsum(values**2 * counts)])
    groups = _groups(values, counts)
    edges = groups[_best_runs(weight[groups], moment[groups], square[groups], size)]
    entries: np.ndarray = np.diff(moment[edges]) / np.diff(weight[edges])
    for _ in range(_MAX_ROUNDS):
        borders = np.searchsorted(values, (entries[1:] + entries[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(values)]])
        filled = np.diff(weight[edges]) > 0
        means = np.diff(moment[edges])[filled] / np.diff(weight[edges])[filled]
        if len(means) == len(entries) and np.array_equal(means, entries):
            break
        entries = means
    return entries


def _groups(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Where groups of neighbouring values begin, and the end of the last.

    As fine everywhere as the entries of a good table are dense: by the cube root of the values' density
    (Panter & Dite, 1951).
    """
    if len(values) <= _GROUPS:
        return np.arange(len(values) + 1)
    density, bins = np.histogram(values, 4 * _GROUPS, weights=counts)
    rising = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    inner = np.interp(np.linspace(0, rising[-1], _GROUPS + 1)[1:-1], rising, bins)
    return np.unique(np.concatenate([[0], np.searchsorted(values, inner), [len(values)]]))


def _best_runs(weight: np.ndarray, moment: np.ndarray, square: np.ndarray, size: int) -> np.ndarray:
    """Where the runs begin whose squared distances from their means are least, and where the last one ends.

    Args:
        weight: running sums over groups of how many values there are, from 0: (groups + 1,).
        moment: of the values.
        square: of their squares.
        size: how many runs, at most as many as groups.
    """
    # (begin, end): the squared distances within one run.
    count = weight[None, :] - weight[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        within = (square[None, :] - square[:, None]) - (moment[None, :] - moment[:, None]) ** 2 / count
    within[count <= 0] = np.inf
    least, begins = within[0], []
    for _ in range(size - 1):
        sums = least[:, None] + within
        begins.append(sums.argmin(axis=0))
        least = sums[begins[-1], np.arange(len(weight))]
    edges = [len(weight) - 1]
    for begin in reversed(begins):
        edges.append(int(begin[edges[-1]]))
    return np.array([0, *reversed(edges)])


def look_up_table(weight: np.ndarray, bits: int, *, zeros_left_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Table and indices for a weight.

    Args:
        weight: any shape, floating point.
        bits: of an index.
        zeros_left_out: zeros are stored by a mask, and take no part; otherwise a weight that has zeros
            gets an entry that is exactly zero.

    Returns:
        Table of 2**bits entries in the type of `weight`, padded with zeros; indices (size,) uint8.
    """
    flat = weight.reshape(-1)
    values, counts = np.unique(flat[flat != 0], return_counts=True)
    keep_zero = not zeros_left_out and len(values) > 0 and bool((flat == 0).any())
    entries = cluster(values, counts, 2**bits - keep_zero).astype(weight.dtype)
    entries = np.unique(np.append(entries, weight.dtype.type(0))) if keep_zero else np.unique(entries)
    middles = (entries[1:].astype(np.float64) + entries[:-1].astype(np.float64)) / 2
    indices = np.searchsorted(middles, flat.astype(np.float64))
    if keep_zero:
        indices[flat == 0] = np.searchsorted(entries, 0)
    table = np.zeros(2**bits, weight.dtype)
    table[: len(entries)] = entries
    return table, indices.astype(np.uint8)
