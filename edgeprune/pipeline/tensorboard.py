"""Logs for TensorBoard: loss, metric, learning rate, zeros and speed of each epoch, a folder per variant."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgeprune.errors import UserError

Write = Callable[[Mapping[str, float]], None]


def refuse_without_package() -> None:
    """Refuse to log where the package that writes the logs is missing.

    Raises:
        UserError: it names the command that installs it.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("tensorboard: the logs need another package: pip install 'edgeprune[tensorboard]'")


@contextmanager
def log(folder: Path | None, epochs_done: int) -> Iterator[Write]:
    """Write the records of epochs to `folder`, by their number; None: nowhere.

    What a killed training logged after its last `epochs_done` is dropped by TensorBoard: it comes again.
    """
    if folder is None:
        yield lambda _: None
        return
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder), purge_step=epochs_done + 1, filename_suffix=f".{epochs_done}") as writer:

        def write(record: Mapping[str, float]) -> None:
            for name, value in record.items():
                if name != "epoch":
                    writer.add_scalar(name, value, int(record["epoch"]))
            writer.flush()

        yield write
