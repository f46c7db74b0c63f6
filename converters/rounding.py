"""How far from its model may a file be that is right, and only has its weights rounded?

No bound on a weight says what it does to the outputs of a network. So the network is asked: its stored
weights are moved at random, each within the half step that storing may have taken from it, and what that does
to the outputs is what rounding explains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DRAWS, MORE_DRAWS = 3, 16
# The one rounding that was done may be an unlucky one beside some at random.
EXPLAINED = 3.0
FLOAT16_HALF_STEP = 2.0**-11
FLOAT16_LEAST = 2.0**-25
INT8_LIMIT = 127.0

Vary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def half_steps(values: np.ndarray, encoding: str) -> np.ndarray:
    """How far each stored value may be from the one it was made from.

    Args:
        values: decoded, output channels first.
        encoding: see `LayerFacts`; "float32" has no steps.

    >>> half_steps(np.array([[127.0, 3.0]]), "int8").tolist()
    [[0.5, 0.5]]
    """
    if "float16" in encoding:
        steps: np.ndarray = np.abs(values) * FLOAT16_HALF_STEP + FLOAT16_LEAST
        return steps
    if "int8" in encoding and values.ndim:
        rows = np.abs(values).reshape(len(values), -1).max(1, initial=0.0) / INT8_LIMIT
        return np.broadcast_to((rows / 2).reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    if "table" in encoding:
        return _half_gaps(values)
    return np.zeros_like(values)


def _half_gaps(values: np.ndarray) -> np.ndarray:
    """Half the way to the nearest other value of a table, on the wider side."""
    entries, places = np.unique(values, return_inverse=True)
    if len(entries) < 2:
        return np.zeros_like(values)
    gaps = np.diff(entries)
    wider = np.maximum(np.append(gaps[0], gaps), np.append(gaps, gaps[-1]))
    result: np.ndarray = (wider / 2)[places].reshape(values.shape)
    return result


def moved(
    values: np.ndarray, steps: np.ndarray, random: np.random.Generator, *, table: bool = False
) -> np.ndarray:
    """Values somewhere within their half steps; zeros stay zeros.

    A value that more than half of an output channel's weights have was one value before, too (what were zeros
    once, under a standardised weight): it was rounded once, and its errors add up instead of cancelling out.
    Not so the entries of a `table`, which stand for many values.
    """
    draws = random.uniform(-1, 1, values.shape)
    if values.ndim > 1 and not table:
        rows, drawn = values.reshape(len(values), -1), draws.reshape(len(values), -1)
        common = rows == np.median(rows, axis=1, keepdims=True)
        common &= common.sum(1, keepdims=True) > rows.shape[1] / 2
        drawn[common] = np.broadcast_to(drawn[:, :1], drawn.shape)[common]
    result: np.ndarray = values + np.where(values == 0, 0.0, draws * steps)
    return result.astype(values.dtype)


def stored_otherwise(values: np.ndarray, encoding: str, random: np.random.Generator) -> np.ndarray:
    """Decoded values as another rounding might have left them; see `half_steps` and `moved`."""
    return moved(values, half_steps(values, encoding), random, table="table" in encoding)


def explained(
    exact: Sequence[np.ndarray], error: float, run: Callable[[np.random.Generator], Sequence[np.ndarray]]
) -> float:
    """The error that rounding explains, as `rms` has it.

    Args:
        exact: outputs with the stored weights as they are.
        error: `rms` of what is to be explained: only where the first few draws do not do so are more made.
        run: gives the outputs with weights moved within their steps, by a source of random numbers.
    """
    draws: list[float] = []
    for count in (DRAWS, MORE_DRAWS):
        draws += [rms(run(np.random.default_rng(seed)), exact) for seed in range(len(draws), count)]
        limit = EXPLAINED * float(np.sqrt(np.mean(np.square(draws))))
        if error <= limit:
            break
    return limit


def rms(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Root mean square of the difference over that of what is wanted, the largest of several outputs.

    >>> rms([np.array([1.0, 2.5])], [np.array([1.0, 2.0])])
    0.22360679774997896
    """
    return max(_rms(f.reshape(w.shape), w) for f, w in zip(found, wanted, strict=True))


def _rms(found: np.ndarray, wanted: np.ndarray) -> float:
    size = float(np.linalg.norm(wanted))
    off = float(np.linalg.norm(found - wanted))
    return off / size if size else off
