"""How much memory LiteRT may take for a file: what a damaged one asks for beyond that, it does not get.

A file says how large every value is, but LiteRT computes the sizes again from what the ops say: a padding
with one bit changed is gigabytes. So the process that LiteRT runs in is held to what the file's own sizes
account for, several times over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.litert.graph import DTYPES, Graph

# For what does not grow with a file: code, tables, scratch space of a few kernels.
SPARE_BYTES = 512 << 20
# The file is held twice, its weights are unpacked to float32, and packed once more for the kernels.
TIMES_FILE, TIMES_WEIGHTS = 2, 3
# LiteRT reuses space, so all values together are more than it needs; a convolution may lay out its windows.
TIMES_VALUES = 4
FLOAT32_BYTES = 4
# Its stack, and what it allocates for itself.
THREAD_BYTES = 16 << 20
# Sizes of what is no number are not checked: beyond this the system takes no limit.
MOST_BYTES = 1 << 40


def allowance_bytes(graph: Graph, file_bytes: int, threads: int | None = None) -> int:
    """What loading and running a file may take at most, beyond what the process has before.

    Args:
        graph: of the file.
        file_bytes: its size.
        threads: LiteRT is told to use; one where None.
    """
    weights = values = 0
    for subgraph in graph.model.subgraphs:
        for tensor in subgraph.tensors:
            size = math.prod(() if tensor.shape is None else map(int, tensor.shape))
            data = graph.model.buffers[tensor.buffer].data
            if data is not None and len(data):
                weights += size * FLOAT32_BYTES
            else:
                values += size * (DTYPES[tensor.type].itemsize if tensor.type in DTYPES else FLOAT32_BYTES)
    spare = SPARE_BYTES + THREAD_BYTES * (threads or 1)
    own = TIMES_FILE * file_bytes + TIMES_WEIGHTS * weights + TIMES_VALUES * values
    return min(spare + own, MOST_BYTES)


@contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Let this process take so much more memory, where the system can hold it to that (Linux)."""
    held_bytes = _held_bytes()
    if held_bytes is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    soft, hard = held_bytes + more_bytes, before[1]
    resource.setrlimit(
        resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _held_bytes() -> int | None:
    """What `RLIMIT_DATA` counts of this process now; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmData:")), None)
