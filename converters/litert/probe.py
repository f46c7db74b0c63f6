"""Tries a file in a process of its own: LiteRT may crash on one that holds together and still makes no sense.

`python -m converters.litert.probe` reads one path a line and answers each with one line: "ok", or why not.
`check` keeps one such process and starts another when a file has ended it.
"""

from __future__ import annotations

import atexit
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from converters.errors import UserError

TIME_LIMIT_SECONDS = 30.0
MEMORY_LIMIT_BYTES = 4 << 30
OK = "ok"


class _Prober:
    """The child process, started when first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, path: Path) -> str:
        """The child's answer, or what became of it."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None  # a pipe, see _running
            try:
                process.stdin.write(f"{path.resolve()}\n")
                process.stdin.flush()
                answer = self._answers.get(timeout=TIME_LIMIT_SECONDS)
            except queue.Empty:
                self.stop()
                return f"LiteRT takes more than {TIME_LIMIT_SECONDS:.0f} s for one image"
            except OSError:
                answer = ""
            if not answer:
                self.stop()
                return "LiteRT crashes on it"
            return answer.rstrip("\n")

    def stop(self) -> None:
        """End the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            root = Path(__file__).parents[2]
            search = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "PYTHONPATH": search},
            )
            self._answers = queue.Queue()
            arguments = (self._process, self._answers)
            threading.Thread(target=_collect, args=arguments, daemon=True).start()
        return self._process


def _collect(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    """Pass on the child's lines; an empty one when it has ended."""
    assert process.stdout is not None  # a pipe, see _Prober
    for line in process.stdout:
        answers.put(line)
    answers.put("")


_PROBER = _Prober()


def check(path: Path) -> None:
    """Run one black image through a file, elsewhere.

    Raises:
        UserError: LiteRT refuses the file, crashes on it, or does not finish.
    """
    answer = _PROBER.ask(path)
    if answer != OK:
        raise UserError(f"{path}: not a usable .tflite file: {answer}")


def serve() -> None:
    """Answer paths on standard input until it ends."""
    from ai_edge_litert.interpreter import Interpreter

    _limit_memory()
    # The answers keep the real standard output; whatever LiteRT prints must not get between them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            interpreter = Interpreter(model_content=Path(line.rstrip("\n")).read_bytes())
            interpreter.allocate_tensors()
            for details in interpreter.get_input_details():
                interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
            interpreter.invoke()
            for details in interpreter.get_output_details():
                interpreter.get_tensor(details["index"])
            answer = OK
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            answer = f"LiteRT refuses it: {first_line}"
        answers.write(f"{answer}\n")
        answers.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    serve()
