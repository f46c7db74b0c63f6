"""Damage at random, the same for the same seed: to bytes, and to the values in plain data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

WORDS = (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x10000)
# What a field may hold that nobody expects, from JSON as well as from TOML.
VALUES: tuple[Any, ...] = (
    True, 0, -1, 1, 10**9, 2**63, 10**400, 0.0, -0.5, 1e308, 5e-324, "", "x", "../..", "\x7f\u202e",
    "9" * 5000, [], [[]], {}, {"": 0}, [1, "a"],
)  # fmt: skip


def mutated(content: bytes, seed: int) -> bytes:
    """Cut off, or with a few bytes, words or offsets changed anywhere behind the mark."""
    random = np.random.default_rng(seed)
    damaged = bytearray(content)
    kind = random.integers(0, 5)
    if kind == 0:
        return bytes(damaged[: random.integers(0, len(damaged))])
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(8, len(damaged) - 8)) & ~3
        word = int.from_bytes(damaged[at : at + 4], "little")
        new = {
            1: word ^ (1 << int(random.integers(0, 32))),
            2: int(random.choice(WORDS)),
            3: int(random.integers(0, 64)),
            4: (word + int(random.integers(-8, 9))) & 0xFFFFFFFF,
        }[int(kind)]
        damaged[at : at + 4] = new.to_bytes(4, "little")
    return bytes(damaged)


def changed_bytes(content: bytes, seed: int, start: int = 0, end: int | None = None) -> bytes:
    """One to three bytes between `start` and `end` changed, put in or taken out."""
    random = np.random.default_rng(seed)
    damaged = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(start, min(len(content) if end is None else end, len(damaged))))
        kind = int(random.integers(0, 4))
        if kind == 0:
            del damaged[at]
        elif kind == 1:
            damaged.insert(at, int(random.integers(0, 256)))
        else:
            damaged[at] = int(random.integers(0, 256))
    return bytes(damaged)


def one_byte(content: bytes, seed: int) -> bytes:
    """One byte changed, anywhere."""
    random = np.random.default_rng(seed)
    damaged = bytearray(content)
    damaged[int(random.integers(0, len(content)))] ^= int(random.integers(1, 256))
    return bytes(damaged)


def changed_values(data: Any, seed: int) -> Any:
    """Plain data with one to three values replaced, removed, renamed or doubled, wherever they are."""
    random = np.random.default_rng(seed)
    damaged = copy.deepcopy(data)
    for _ in range(int(random.integers(1, 4))):
        holder = _some_holder(damaged, random)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key = keys[int(random.integers(0, len(keys)))]
        kind = int(random.integers(0, 6))
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(VALUES[int(random.integers(0, len(VALUES)))])
    return damaged


def _some_holder(data: Any, random: np.random.Generator) -> Any:
    """A dictionary or list in `data`, found by going down at random."""
    while True:
        inside = [
            v
            for v in (data.values() if isinstance(data, dict) else data)
            if isinstance(v, (dict, list)) and v
        ]
        if not inside or random.random() < 0.25:
            return data
        data = inside[int(random.integers(0, len(inside)))]
