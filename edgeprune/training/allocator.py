"""The C library's memory allocator, set up for training.

As it comes, glibc gives the memory of every large tensor back to the system when it is freed, and asks for it
again at the next layer. Each page is then cleared and mapped again: at 224 px that takes longer than the
training itself.
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
# In bytes: freed memory that is kept, and the largest piece that comes from it; during training, and the most
# that both grow to by themselves otherwise.
TRAINING = {M_TRIM_THRESHOLD: 2**31 - 1, M_MMAP_THRESHOLD: 2**30}
OTHERWISE = {M_TRIM_THRESHOLD: 2**26, M_MMAP_THRESHOLD: 2**25}


@contextmanager
def keeping_freed_memory() -> Iterator[bool]:
    """Keep freed memory for the next tensors inside, and give it back to the system afterwards.

    Yields whether it does: only with glibc, and only if no variable of the environment sets the allocator.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        yield False
        return
    library = ctypes.CDLL(None)
    try:
        yield _set(library, TRAINING)
    finally:
        _set(library, OTHERWISE)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> bool:
    return all(library.mallopt(parameter, value) for parameter, value in values.items())
