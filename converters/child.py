"""A process of our own that answers one message at a time, for code that a bad file can crash or hang.

The child is started when first asked, serves all callers of this process, and is ended when it does not
answer in time. Where it had answered before, the message is sent once more to a new one, because an earlier
file may have damaged its memory; what ends a fresh one is refused.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class DiedError(Exception):
    """What the child did instead of answering."""


class RefusedError(Exception):
    """The child's answer: why it cannot do what it was asked."""


class Child:
    """A process that runs `python -m MODULE DESCRIPTOR` and answers on that end of a pipe.

    Args:
        module: whose `main` calls `serve`.
        what: does the work, for messages: "Core AI".
    """

    def __init__(self, module: str, what: str) -> None:
        self._module = module
        self._what = what
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._answered = False
        atexit.register(self.stop)

    def ask(self, message: Any, seconds: float) -> Any:
        """Send a message, and return the answer.

        Raises:
            RefusedError: the child says that it cannot; or a fresh one crashes on it, or takes longer.
        """
        with self._lock:
            while True:
                had_answered = self._answered
                try:
                    return self._ask(message, seconds)
                except DiedError as reason:
                    self.stop()
                    if not had_answered:
                        raise RefusedError(str(reason)) from None

    def stop(self) -> None:
        """End the child, if there is one."""
        self._answered = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, message: Any, seconds: float) -> Any:
        connection = self._started()
        try:
            connection.send(message)
            if not connection.poll(seconds):
                raise DiedError(f"{self._what} takes more than {seconds:.0f} s on it")
            kind, answer = connection.recv()
        except (OSError, EOFError):
            raise DiedError(f"{self._what} crashes on it") from None
        self._answered = True
        if kind == "refused":
            raise RefusedError(answer)
        return answer

    def _started(self) -> Connection:
        if self._connection is None:
            here, there = Pipe()
            root = str(Path(__file__).parents[1])
            search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": search},
            )
            there.close()
            self._connection = here
        return self._connection


def serve(answer: Callable[[Any], Any]) -> None:
    """Answer messages until the parent is gone: what the child's `main` calls.

    Args:
        answer: what a message gets; raises `RefusedError` where it cannot.
    """
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            message = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            connection.send(("done", answer(message)))
        except RefusedError as reason:
            connection.send(("refused", str(reason)))
