"""Several processes under `accelerate launch`: all of them train; the first decides, writes and measures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


def count() -> int:
    """Processes that `accelerate launch` or torchrun started together; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return rank() == 0


def complain(text: str) -> None:
    """Say what went wrong, on stderr, in each process: the first to fail has the others stopped."""
    sys.stderr.write(f"{text}\n" if count() == 1 else f"process {rank()}: {text}\n")


def on_cpu() -> bool:
    """Whether several processes train without a GPU, which accelerate must be told."""
    import torch

    return count() > 1 and not torch.cuda.is_available()


def joined() -> int:
    """Join the other processes, the first time, and return how many there are."""
    from accelerate import PartialState

    return int(PartialState(cpu=on_cpu()).num_processes)


def shared(make: Callable[[], Made]) -> Made:
    """What `make` gives in the first process, in all of them; every process must call this.

    Raises:
        Exception: whatever `make` raised, in all processes, so that none waits for one that has gone.
    """
    if count() == 1:
        return make()
    import torch.distributed

    joined()
    sent: list[Any] = [None, None]
    if is_first():
        try:
            sent = [make(), None]
        except Exception as failure:  # Sent on, not swallowed.
            sent = [None, failure]
    torch.distributed.broadcast_object_list(sent)
    made, refusal = sent
    if refusal is not None:
        raise refusal
    return made  # type: ignore[no-any-return]


def gathered(own: Any) -> list[Any]:
    """What every process has, in the order of their ranks, this one's `own` among them; all call this."""
    if count() == 1:
        return [own]
    import torch.distributed

    joined()
    found: list[Any] = [None] * count()
    torch.distributed.all_gather_object(found, own)
    return found
