"""Runs `.tflite` files on a runtime: outputs for given images, and times in turns."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ToolError
from converters.runtimes.environments import Runtime

MESSAGE_LINES = 3


@dataclass(frozen=True)
class Task:
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
        milliseconds: one run of the first image, as often as was asked for, taking turns with the other files.
        refused: why the runtime does not run the file; None where it does.
    """

    outputs: np.ndarray | None
    milliseconds: tuple[float, ...]
    refused: str | None


@dataclass(frozen=True)
class Ran:
    """The answers to a job's tasks, in order, and the version of what gave them ("LiteRT 2.3.0")."""

    version: str
    answers: tuple[Answer, ...]


def run(
    tasks: Sequence[Task],
    runtime: Runtime,
    *,
    rounds: int = 0,
    warmup: int = 2,
    threads: int = 1,
    limit_s: float = 1800.0,
    show: Callable[[int, int], None] | None = None,
) -> Ran:
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
        ToolError: it ends before the job is done; the message names the file it was at.
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
    return Ran(told["version"], answers)


def _entry(task: Task, folder: Path, number: int) -> dict[str, Any]:
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
    return Answer(outputs, tuple(reply["milliseconds"]), None)


def _watch(
    command: list[str], limit_s: float, log: Path, show: Callable[[int, int], None] | None
) -> tuple[int | None, str]:
    """Run a command to its end; returns the last task it announced, and the end of what it complained."""
    import threading

    last = None
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                step = _announced(line)
                if step is not None:
                    last = step["task"]
                    if show is not None:
                        show(step["step"], step["of"])
        finally:
            timer.cancel()
            if process.poll() is None and process.stdout is not None and process.stdout.closed:
                process.kill()
            status = process.wait()
    complaint = "\n".join(log.read_text(errors="replace").strip().splitlines()[-MESSAGE_LINES:])
    return last, complaint or f"exit status {status}"


def _announced(line: str) -> dict[str, int] | None:
    try:
        step = json.loads(line)
    except ValueError:
        return None
    return step if isinstance(step, dict) and "task" in step else None
