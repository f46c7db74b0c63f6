"""The C library's memory allocator, set up for running models on the CPU.

As it comes, glibc gives the memory of every large tensor back to the system when it is freed, and asks for it
again at the next layer. Each page is then mapped and cleared again: at 224 px that can take longer than the
layers themselves.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Of <malloc.h>; and what sets them by hand.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
# In bytes: freed memory that is kept, and the largest piece that comes from it; while models run, and what
# both grow to at most by themselves otherwise.
RUNNING = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_THRESHOLD: 2**30}
OTHERWISE = {M_TRIM_THRESHOLD: 2**26, M_MMAP_THRESHOLD: 2**25}


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


def _set(library: ctypes.CDLL, values: dict[int, int]) -> bool:
    return all(library.mallopt(parameter, value) for parameter, value in values.items())
