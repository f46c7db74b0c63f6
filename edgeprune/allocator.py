"""The C library's memory allocator, set up for running models on the CPU.

As it comes, glibc gives the memory of every large tensor back to the system when it is freed, and asks for it
again at the next layer. Each page is then mapped and cleared again: at 224 px that can take longer than the
layers themselves.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psutil

# Of <malloc.h>; and what sets them by hand.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
# In bytes: freed memory that is kept, and the largest piece that comes from it; while models run, and what
# both grow to at most by themselves otherwise.
RUNNING = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_THRESHOLD: 2**30}
OTHERWISE = {M_TRIM_THRESHOLD: 2**26, M_MMAP_THRESHOLD: 2**25}
# Freed memory goes back in between when the process takes so much more than one batch needs.
GROWTH, GROWTH_BYTES = 1.1, 2**27

T = TypeVar("T")

_inside = 0  # How many of these are open: the innermost must not end it for the others.


@contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Keep freed memory for the next tensors inside, and give it back to the system afterwards.

    Yields whether it does: only with glibc, and only if no variable of the environment sets the allocator.
    Can stand before a function, too: `@keeping_freed_memory()`.
    """
    global _inside
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        yield False
        return
    library = ctypes.CDLL(None)
    _inside += 1
    try:
        yield _set(library, RUNNING)
    finally:
        _inside -= 1
        if not _inside:
            _set(library, OTHERWISE)
            library.malloc_trim(0)


def giving_back(batches: Iterable[T]) -> Iterator[T]:
    """The batches; inside `keeping_freed_memory` what is free goes back to the system when it has piled up.

    Among what is kept, pieces come to lie free that are too small for what is asked for next: in hours of
    training they would fill the memory.
    """
    process = psutil.Process()
    limit = 0.0
    for batch in batches:
        if _inside and process.memory_info().rss >= limit:
            ctypes.CDLL(None).malloc_trim(0)
            limit = math.inf
        yield batch
        if limit == math.inf:  # Nothing lay free before this batch.
            limit = GROWTH * process.memory_info().rss + GROWTH_BYTES


def _set(library: ctypes.CDLL, values: dict[int, int]) -> bool:
    return all(library.mallopt(parameter, value) for parameter, value in values.items())
