"""Memory that training frees is kept for the next step, and given back afterwards."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Tensors of 64 MB, one after the other: pages the system had to map and clear, told by getrusage.
FAULTS = """
import resource, torch
from edgeprune.allocator import keeping_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
before = faults()
with keeping_freed_memory() as kept:
    faults()
    inside, held = faults(), resident()
print(kept, before, inside, held - resident())
"""


def told(script: str = FAULTS, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is set up")


@only_glibc
def test_freed_memory_is_kept_while_training_and_given_back():
    kept, before, inside, returned = told()
    assert kept == "True"
    assert int(inside) < int(before) / 10 or int(before) == 0  # Some sandboxes count no faults.
    assert int(returned) > 32e6


def test_an_allocator_set_by_hand_is_left_alone():
    assert told(MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"


@only_glibc
def test_one_inside_another_does_not_end_it():
    inner = "with keeping_freed_memory():\n        pass\n    faults()\n    inside, held"
    kept, before, inside, _ = told(FAULTS.replace("faults()\n    inside, held", inner, 1))
    assert (kept, int(inside) < int(before) / 10 or int(before) == 0) == ("True", True)


PIECES = """
import resource, torch
from edgeprune.allocator import giving_back, keeping_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def freed():  # Every second piece of 4 MB stays: 400 MB between them are free, none at the end.
    pieces = [torch.ones(1 << 20) for _ in range(200)]
    return pieces[1::2]

with keeping_freed_memory() as kept:
    for batch in giving_back(range(3)):
        if batch == 1:
            left, held = freed(), resident()
        if batch == 2:
            print(kept, held, held - resident())
"""


@only_glibc
def test_free_pieces_do_not_pile_up_while_training():
    kept, held, returned = told(PIECES)
    assert (kept, int(held) > 800e6) == ("True", True)
    assert int(returned) > 300e6
