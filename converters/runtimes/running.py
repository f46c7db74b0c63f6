"""Runs `.tflite` files on a runtime: outputs for given images, and times in turns."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ToolError
from converters.runtimes.environments import Runtime

MESSAGE_LINES = 3
# Given to a runtime that has to stop; a browser closes its helpers in it.
SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class FileRun:
    """One file, and what to feed it.

    Attributes:
        path: the `.tflite` file.
        images: (n, ...) float32, n at least 1, in the model's own layout and range.
    """

    path: Path
    images: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What a runtime did with one task.

    Attributes:
        outputs: (n, values) float32; None where the runtime refuses the file.
        milliseconds: one run of the first image, as often as was asked for, in turns with the other files.
        refused: why the runtime does not run the file; None where it does.
        load_memory_bytes: resident memory that loading it and running its images added at the peak; known of
            a job's first file only, where the system tells.
    """

    outputs: np.ndarray | None
    milliseconds: tuple[float, ...]
    refused: str | None
    load_memory_bytes: int | None = None


@dataclass(frozen=True)
class RunResult:
    """The answers to a job's tasks, in order, and the version of what gave them ("LiteRT 2.3.0")."""

    version: str
    answers: tuple[Answer, ...]


def run_files(
    tasks: Sequence[FileRun],
    runtime: Runtime,
    *,
    rounds: int = 0,
    warmup: int = 2,
    threads: int = 1,
    limit_s: float = 1800.0,
    show: Callable[[int, int], None] | None = None,
) -> RunResult:
    """Run every task's images, then time all files in turns.

    Args:
        tasks: the files.
        runtime: where.
        rounds: how often each file is timed; 0 for outputs only.
        warmup: rounds before that, not counted.
        threads: of the runtime.
        limit_s: for the whole job.
        show: called with (step, of how many) as the job goes on.

    Raises:
        UserError: the runtime is not prepared.
        ToolError: it ends before the job is done, or has to be ended; the message names the file it was at.
    """
    command = runtime.command()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        job = Path(folder, "job.json")
        result = Path(folder, "result.json")
        entries = [_entry(task, Path(folder), number) for number, task in enumerate(tasks)]
        job.write_text(
            json.dumps(
                {
                    # Processor time is steadier, and all that an emulator's clock is good for.
                    "clock": "process" if runtime.emulated else "wall",
                    "threads": threads,
                    "warmup": warmup,
                    "rounds": rounds,
                    "result": str(result),
                    "tasks": entries,
                }
            )
        )
        last, message = _watch([*command, str(job)], limit_s, Path(folder, "stderr"), show)
        if not result.exists():
            at = tasks[last].path if last is not None else "the start"
            raise ToolError(f"{runtime.description} ended at {at}: {message}")
        told = json.loads(result.read_text())
        answers = tuple(_answer(entry, reply) for entry, reply in zip(entries, told["tasks"], strict=True))
    return RunResult(told["version"], answers)


def _entry(task: FileRun, folder: Path, number: int) -> dict[str, Any]:
    images = folder / f"{number}.images"
    np.ascontiguousarray(task.images, "<f4").tofile(images)
    return {
        "model": str(task.path.resolve()),
        "images": str(images),
        "count": len(task.images),
        "outputs": str(folder / f"{number}.outputs"),
    }


def _answer(entry: dict[str, Any], reply: dict[str, Any]) -> Answer:
    if reply["refused"] is not None:
        return Answer(None, (), reply["refused"])
    outputs = np.fromfile(entry["outputs"], "<f4").reshape(entry["count"], reply["values"])
    return Answer(outputs, tuple(reply["milliseconds"]), None, reply.get("load_memory_bytes"))


def _watch(
    command: list[str], limit_s: float, log: Path, show: Callable[[int, int], None] | None
) -> tuple[int | None, str]:
    """Run a command to its end; returns the last task it announced, and what it said or how it ended.

    The command does not outlive this call, however that ends.
    """
    last = None
    overdue = threading.Event()

    def stop() -> None:
        overdue.set()
        _end(process)

    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        timer = threading.Timer(limit_s, stop)
        timer.start()
        try:
            for line in process.stdout or ():
                step = _announced(line)
                if step is not None:
                    last = step["task"]
                    if show is not None:
                        show(step["step"], step["of"])
            status = process.wait()
        finally:
            timer.cancel()
            _end(process)
    if overdue.is_set():
        return last, f"stopped because it was not done after {limit_s:g} s"
    return last, "\n".join([_ending(status), *_complaint(log)])


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()


def _ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status} ({signal.strsignal(-status)})"


def _complaint(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").strip().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("INFO:")][-MESSAGE_LINES:]


def _announced(line: str) -> dict[str, int] | None:
    try:
        step = json.loads(line)
    except ValueError:
        return None
    return step if isinstance(step, dict) and "task" in step else None
