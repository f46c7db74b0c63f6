"""`edgeprune bench`: how fast files run on one runtime, timed in turns: what disturbs one disturbs all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from converters.facts import InputSpec, sha256, size_bytes
from converters.format import format_of, timed_suffixes
from converters.runtimes.environments import Runtime, runtime
from converters.runtimes.running import Answer, Task, run
from edgeprune.errors import ToolError, UserError
from edgeprune.pipeline.environment import processor
from edgeprune.report.formatting import bytes_human

SCHEMA = 1
# Rounds before those that count: the first ones fill caches, and a browser still compiles.
WARMUP = 2
# A step that takes longer hangs; emulated ones take seconds.
SECONDS_TO_START, SECONDS_PER_STEP = 300.0, 60.0
SEED = 0


@dataclass(frozen=True)
class File:
    """A file that was read and found whole.

    Attributes:
        path: where it is.
        spec: what it expects.
        channels_last: whether it has its image as (height, width, channels) inside.
        sparse: whether the linter says that the runtime will use its sparse kernels.
        problems: what the linter has against that.
    """

    path: Path
    spec: InputSpec
    channels_last: bool
    sparse: bool
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What will be measured, everything about it checked.

    Attributes:
        files: at least one, all of one image size; the others are compared with the first.
        runtime: where.
        rounds: how often each file is timed.
        threads: of the runtime.
    """

    files: tuple[File, ...]
    runtime: Runtime
    rounds: int
    threads: int

    @property
    def steps(self) -> int:
        """Runs until it is done, of all files together, those before the clock included."""
        return len(self.files) * (1 + WARMUP + self.rounds)


@dataclass(frozen=True)
class Timed:
    """What was measured of one file.

    Attributes:
        file: the file.
        bytes: on disk.
        sha256: of its content.
        refused: why the runtime does not run it; None where it does.
        milliseconds: of each round, (rounds,); empty where refused.
        difference: largest difference of its output to the first file's, over the first's largest value.
        difference_reason: why there is none; None where there is.
        load_memory_bytes: resident memory that loading the file and running it once adds at the peak to a
            fresh process of LiteRT on this machine, whatever the runtime of the times.
        load_memory_reason: why there is none; None where there is.
    """

    file: File
    bytes: int
    sha256: str
    refused: str | None
    milliseconds: tuple[float, ...]
    difference: float | None
    difference_reason: str | None
    load_memory_bytes: int | None
    load_memory_reason: str | None


@dataclass(frozen=True)
class Bench:
    """All of one measurement; `files[0]` is what the others are compared with."""

    plan: Plan
    version: str
    files: tuple[Timed, ...]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def plan(
    paths: Sequence[Path],
    runtime_name: str,
    *,
    rounds: int = 20,
    threads: int = 1,
    output: Path | None = None,
) -> Plan:
    """Check all that can be wrong before anything runs.

    Args:
        paths: one or more; a file may come twice.
        runtime_name: of `converters.runtimes.environments.RUNTIMES`.
        rounds: how often each file is timed, 1 or more.
        threads: of the runtime, 1 or more.
        output: a file the result will be written to.

    Raises:
        UserError: all mistakes together.
    """
    problems = [f"--rounds {rounds}: must be 1 or more"] * (rounds < 1)
    problems += [f"--threads {threads}: must be 1 or more"] * (threads < 1)
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        problems.append(f"cannot write {output}: {'a folder' if output.is_dir() else 'no such folder'}")
    chosen = None
    try:
        chosen = runtime(runtime_name)
        if chosen.one_thread and threads > 1:
            problems.append(f"--threads {threads}: the {chosen.name} runtime runs on one thread")
        chosen.command()
    except UserError as error:
        problems += error.problems
    files = []
    for path in dict.fromkeys(paths):
        try:
            files.append(_read(path, chosen))
        except UserError as error:
            problems += error.problems
    problems += _differing_sizes(files)
    if problems or chosen is None:
        raise UserError(problems)
    by_path = {file.path: file for file in files}
    return Plan(tuple(by_path[path] for path in paths), chosen, rounds, threads)


def measure(plan: Plan, show: Callable[[int], None] | None = None) -> Bench:
    """Run every file of a plan once for its output, then all of them in turns against the clock.

    Args:
        plan: what to measure.
        show: called with the number of steps done, of `plan.steps`.

    Raises:
        ToolError: the runtime crashes; the message names the file it was at.
    """
    tasks = [Task(file.path, image(file)) for file in plan.files]
    ran = run(
        tasks,
        plan.runtime,
        rounds=plan.rounds,
        warmup=WARMUP,
        threads=plan.threads,
        limit_s=SECONDS_TO_START + SECONDS_PER_STEP * plan.steps,
        show=None if show is None else lambda step, _: show(step),
    )
    first = (plan.files[0], ran.answers[0])
    memory = {file: load_memory(file) for file in dict.fromkeys(plan.files)}
    timed = [
        _timed(file, answer, first, memory[file])
        for file, answer in zip(plan.files, ran.answers, strict=True)
    ]
    return Bench(plan, ran.version, tuple(timed))


def load_memory(file: File) -> tuple[int | None, str | None]:
    """Bytes of memory a file adds to a fresh process of LiteRT on this machine, or why that is not known."""
    try:
        (answer,) = run([Task(file.path, image(file))], runtime("host"), limit_s=SECONDS_TO_START).answers
    except ToolError as error:
        return None, str(error)
    if answer.refused is not None:
        return None, f"LiteRT on this machine refuses it: {answer.refused}"
    if answer.load_memory_bytes is None:
        return None, "only Linux tells the peak of a process's memory from a moment on"
    return answer.load_memory_bytes, None


def image(file: File) -> np.ndarray:
    """What a file is fed, (1, ...) float32 in its own layout: random, the same for all of one range."""
    random = np.random.default_rng(SEED)
    if file.spec.range is None:
        pixels = random.standard_normal(file.spec.shape, np.float32)
    else:
        pixels = np.rint(random.uniform(*file.spec.range, file.spec.shape)).astype(np.float32)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0) if file.channels_last else pixels)[None]


# --- Figures ------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> Spread | None:
    """Median and quartiles; None of nothing.

    >>> spread([1.0, 2.0, 3.0, 4.0, 100.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    if not values:
        return None
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(median, low, high)


def speed(file: Timed, first: Timed) -> Spread | None:
    """How many times as fast as the first file, round by round; None where one of them is refused.

    A round's times were taken one after the other, so a machine that slows down for a while moves their ratio
    less than it moves the times.
    """
    if not file.milliseconds or not first.milliseconds:
        return None
    return spread(np.divide(first.milliseconds, file.milliseconds).tolist())


def to_plain(bench: Bench) -> dict[str, Any]:
    """Everything, as plain data for JSON; a thing not measured is None with a reason."""
    channels, height_px, width_px = bench.plan.files[0].spec.shape
    where = bench.plan.runtime
    return {
        "schema": SCHEMA,
        "runtime": where.name,
        "description": where.description,
        "version": bench.version,
        "emulated": where.emulated,
        "clock": "processor time" if where.emulated else "wall time",
        "processor": processor(),
        "threads": bench.plan.threads,
        "warmup": WARMUP,
        "rounds": bench.plan.rounds,
        "image": {"channels": channels, "height_px": height_px, "width_px": width_px},
        "files": [_file_to_plain(file, bench.files[0]) for file in bench.files],
    }


def to_json(bench: Bench) -> str:
    """`to_plain` as text."""
    return json.dumps(to_plain(bench), indent=2, allow_nan=False) + "\n"


# --- For people ---------------------------------------------------------------------------------------------


def print_bench(bench: Bench, console: Console) -> None:
    """Print the table and what must be known to read it."""
    console.print(_table(bench))
    for line in notes(bench):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def notes(bench: Bench) -> list[str]:
    """What must be known to read the table, a line each."""
    _, height_px, width_px = bench.plan.files[0].spec.shape
    threads = f"{bench.plan.threads} thread{'s' * (bench.plan.threads > 1)}"
    lines = [
        f"{bench.version}, {bench.plan.runtime.description}; {height_px}x{width_px} px, {threads}",
        f"{bench.plan.rounds} rounds in turns: medians, in brackets the quartiles",
        f"speed (round by round) and difference against {bench.plan.files[0].path}",
        "memory: what loading and running it once adds to a new process of LiteRT on this machine",
    ]
    if bench.plan.runtime.emulated:
        lines.append("emulated: the times say nothing by themselves, only how files compare in this run")
    told = set()
    for timed in bench.files:
        if timed.file.path not in told:
            told.add(timed.file.path)
            lines += _remarks(timed)
    return lines


def _remarks(timed: Timed) -> list[str]:
    lines = []
    if timed.refused is not None:
        lines.append(f"{timed.file.path}: refused by the runtime: {timed.refused}")
    if timed.file.problems:
        lines.append(f"{timed.file.path}: no sparse kernels: {timed.file.problems[0]}")
    if timed.difference_reason is not None and timed.refused is None:
        lines.append(f"{timed.file.path}: no difference given: {timed.difference_reason}")
    return lines


def _table(bench: Bench) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in ("bytes", "memory", "ms", "× speed", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("sparse kernels")
    for timed in bench.files:
        table.add_row(
            str(timed.file.path),
            f"{timed.bytes:,}",
            "–" if timed.load_memory_bytes is None else bytes_human(timed.load_memory_bytes),
            "refused" if timed.refused else _shown(spread(timed.milliseconds)),
            _shown(speed(timed, bench.files[0])),
            "–" if timed.difference is None else f"{timed.difference:.1e}" if timed.difference else "0",
            "yes" if timed.file.sparse else "no",
        )
    return table


def _shown(figure: Spread | None) -> str:
    return "–" if figure is None else f"{figure.median:.2f} ({figure.low:.2f}–{figure.high:.2f})"


# --- Small things -------------------------------------------------------------------------------------------


def _read(path: Path, where: Runtime | None) -> File:
    if path.suffix not in timed_suffixes():
        raise UserError(f"{path}: expected a {' or '.join(timed_suffixes())} file")
    lint_runtime = where.lint_runtime if where is not None else "host"
    found = format_of(path).timing_input(path, lint_runtime)
    return File(path, found.spec, found.channels_last, found.sparse, found.problems)


def _differing_sizes(files: Sequence[File]) -> list[str]:
    """Times of different sizes compare nothing."""
    return [
        f"{file.path} takes {_size(file)}, {files[0].path} takes {_size(files[0])}: "
        "compare files of one image size"
        for file in files[1:]
        if file.spec.shape != files[0].spec.shape
    ]


def _size(file: File) -> str:
    channels, height_px, width_px = file.spec.shape
    return f"{height_px}x{width_px} px of {channels} channels"


def _timed(
    file: File, answer: Answer, first: tuple[File, Answer], memory: tuple[int | None, str | None]
) -> Timed:
    difference, reason = _difference(file, answer, *first)
    return Timed(
        file,
        size_bytes(file.path),
        sha256(file.path),
        answer.refused,
        answer.milliseconds,
        difference,
        reason,
        *memory,
    )


def _difference(
    file: File, answer: Answer, first: File, first_answer: Answer
) -> tuple[float | None, str | None]:
    ours, theirs = answer.outputs, first_answer.outputs
    if ours is None or theirs is None:
        return None, "it is refused" if ours is None else "the first file is refused"
    if file.spec.range != first.spec.range:
        return None, "it takes pixels in another range than the first file"
    if ours.shape != theirs.shape:
        return None, f"it gives {ours.shape[1]} values, the first file {theirs.shape[1]}"
    if not ours.size:
        return None, "it gives no values"
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None, "there are NaN or infinite values in an output"
    largest = float(np.abs(theirs).max())
    if largest == 0:
        return None, "the first file gives only zeros"
    return float(np.abs(ours - theirs).max()) / largest, None


def _file_to_plain(timed: Timed, first: Timed) -> dict[str, Any]:
    times, ratio = spread(timed.milliseconds), speed(timed, first)
    reason = timed.refused or ("the first file is refused" if first.refused else None)
    return {
        "path": str(timed.file.path),
        "bytes": timed.bytes,
        "sha256": timed.sha256,
        "refused": timed.refused,
        "sparse_kernels": timed.file.sparse,
        "problems": list(timed.file.problems),
        "milliseconds": list(timed.milliseconds),
        "median_ms": None if times is None else times.median,
        "quartiles_ms": None if times is None else [times.low, times.high],
        "speed": None if ratio is None else ratio.median,
        "speed_quartiles": None if ratio is None else [ratio.low, ratio.high],
        "speed_reason": reason,
        "difference": timed.difference,
        "difference_reason": timed.difference_reason,
        "load_memory_bytes": timed.load_memory_bytes,
        "load_memory_reason": timed.load_memory_reason,
    }
