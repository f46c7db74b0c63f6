"""Lookup tables for weights: k-means on one axis, exact about zeros and the same on every machine."""

from __future__ import annotations

import numpy as np

_MAX_ROUNDS = 100


def cluster(values: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Place `size` table entries so that the squared distance from values to nearest entries is small.

    Lloyd's algorithm from evenly filled quantiles; on one axis a cluster is a run of sorted values, so a
    round costs a search and two differences of running sums.

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
    # Middles of `size` equal shares of all values.
    shares = (np.arange(size) + 0.5) / size * weight[-1]
    entries = np.unique(values[np.searchsorted(weight[1:], shares)])
    for _ in range(_MAX_ROUNDS):
        borders = np.searchsorted(values, (entries[1:] + entries[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(values)]])
        filled = np.diff(weight[edges]) > 0
        means = np.diff(moment[edges])[filled] / np.diff(weight[edges])[filled]
        if len(means) == len(entries) and np.array_equal(means, entries):
            break
        entries = means
    return entries


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
