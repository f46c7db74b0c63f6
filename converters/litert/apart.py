"""Runs LiteRT in a process of its own: a file can hold together, make no sense, and crash it.

One child serves all models of this process. It is told a model's digest, what memory it may take, and images;
it asks for the model's bytes if it does not have them. When it dies, the call is tried once more on a new
child, because an earlier model may have damaged its memory; a model that ends that one too is refused.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import UserError
from converters.litert.graph import Graph
from converters.litert.interpreter import Interpreter, Refused
from converters.litert.memory import allowance_bytes, at_most

SECONDS_TO_START = 60.0
SECONDS_PER_IMAGE = 30.0
MEMORY_LIMIT_BYTES = 4 << 30
MODELS_KEPT = 4
IMAGES_PER_MESSAGE = 64


class _DiedError(Exception):
    """The child ended, or had to be."""


class InterpreterApart:
    """The same as `interpreter.Interpreter`, elsewhere."""

    def __init__(self, content: bytes, threads: int | None, graph: Graph) -> None:
        """The graph is that of the file: how much memory it may take."""
        self._content = content
        self._allowance_bytes = allowance_bytes(graph, len(content), threads)
        self._key = (hashlib.sha256(content).hexdigest(), threads)

    def run(self, images: np.ndarray) -> np.ndarray:
        """See `Interpreter.run`.

        Raises:
            Refused: LiteRT refuses the model, crashes on it, or does not finish.
        """
        parts = [
            images[at : at + IMAGES_PER_MESSAGE] for at in range(0, max(len(images), 1), IMAGES_PER_MESSAGE)
        ]
        return np.concatenate([self._run(part) for part in parts])

    def _run(self, images: np.ndarray) -> np.ndarray:
        with _CHILD.lock:
            try:
                return _CHILD.ask(self._key, self._content, self._allowance_bytes, images)
            except _DiedError:
                _CHILD.stop()
            try:
                return _CHILD.ask(self._key, self._content, self._allowance_bytes, images)
            except _DiedError as reason:
                _CHILD.stop()
                raise Refused(str(reason)) from None


class _Child:
    """The child process, started when first needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        atexit.register(self.stop)

    def ask(
        self, key: tuple[str, int | None], content: bytes, more_bytes: int, images: np.ndarray
    ) -> np.ndarray:
        """One message, one answer.

        Raises:
            _DiedError: the child did not answer; says what it did instead.
            Refused: it answered that it cannot run the model.
        """
        connection = self._started()
        try:
            connection.send((key, more_bytes, images))
            kind, answer = self._answer(connection, SECONDS_TO_START)
            if kind == "which?":
                connection.send_bytes(content)
                kind, answer = self._answer(connection, SECONDS_PER_IMAGE * (len(images) + 1))
            elif kind == "running":
                kind, answer = self._answer(connection, SECONDS_PER_IMAGE * (len(images) + 1))
        except (OSError, EOFError):
            raise _DiedError("LiteRT crashes on it") from None
        if kind == "refused":
            raise Refused(answer)
        result: np.ndarray = answer
        return result

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, connection: Connection, seconds: float) -> tuple[str, Any]:
        if not connection.poll(seconds):
            raise _DiedError(f"LiteRT takes more than {seconds:.0f} s on it")
        kind, answer = connection.recv()
        return kind, answer

    def _started(self) -> Connection:
        if self._connection is None:
            here, there = Pipe()
            root = str(Path(__file__).parents[2])
            search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": search},
            )
            there.close()
            self._connection = here
        return self._connection


_CHILD = _Child()


def serve(connection: Connection) -> None:
    """Answer until the parent is gone."""
    _limit_memory()
    kept: OrderedDict[tuple[str, int | None], Interpreter] = OrderedDict()
    while True:
        try:
            key, more_bytes, images = connection.recv()
        except EOFError:
            return
        try:
            if key in kept:
                connection.send(("running", None))
                kept.move_to_end(key)
            else:
                connection.send(("which?", None))
                content = connection.recv_bytes()
                with at_most(more_bytes):
                    kept[key] = Interpreter(content, key[1])
            with at_most(more_bytes + 2 * len(images) * kept[key].output_bytes):
                outputs = kept[key].run(images)
            connection.send(("done", outputs))
        except Refused as reason:
            connection.send(("refused", str(reason)))
        while len(kept) > MODELS_KEPT:
            kept.popitem(last=False)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not everywhere
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main() -> None:
    """What the child runs: its end of the pipe is the descriptor it is given."""
    try:
        serve(Connection(int(sys.argv[1])))
    except (UserError, KeyboardInterrupt):
        sys.exit(1)


if __name__ == "__main__":
    main()
