"""`edgeprune bench`: the latency of files on one runtime.

Timings are interleaved, so that background load affects every file alike."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.facts import InputSpec, sha256, size_bytes
from converters.format import format_of, timed_suffixes
from converters.runtimes.environments import Runtime, runtime
from edgeprune.commands.bench_phone import (
    ANDROID,
    APPLE,
    PHONE_ACCELERATORS,
    add_phone_options,
    refuse_elsewhere,
    time_on_apple,
    time_on_phone,
)
from edgeprune.commands.options import RUNTIME_NAMES, add_json
from edgeprune.commands.output import DONE, deliver, json_text, progress, refuse_unwritable, unwritable
from edgeprune.errors import ToolError, UserError
from edgeprune.evaluation import bench_result
from edgeprune.evaluation.bench_result import BenchResult, FileTiming, ImageSize, to_plain
from edgeprune.report.formatting import bytes_human

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from converters.runtimes.android import PhoneRan, PhoneTimes
    from converters.runtimes.running import Answer

# Rounds before those that count: the first ones fill caches, and a browser still compiles.
WARMUP = 2
# A step that takes longer hangs; emulated ones take seconds.
SECONDS_TO_START, SECONDS_PER_STEP = 300.0, 60.0
SEED = 0
EXAMPLES = """\
  edgeprune bench dense.tflite sparse.tflite
  edgeprune bench dense.tflite sparse.tflite --runtime x86-sparse --rounds 10
  edgeprune bench runs/mine/files/*litert-arm64*.tflite --runtime arm64 --json -
  edgeprune bench runs/mine/files/*litert-arm64*.tflite --runtime android --rounds 10

x86-sparse, arm64 and browser are prepared once, by make runtimes. host and
browser take real time. The others are emulated: only how files compare in one
run means something. android is a phone on adb, with LiteRT's benchmark_model;
mac is this Mac, ios-device an iPhone or iPad that is connected to it.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="the others are compared with the first"
    )
    command.add_argument(
        "--runtime",
        default="host",
        help=f"where they run: {RUNTIME_NAMES}, {', '.join((ANDROID, *APPLE))}; %(default)s if not given",
    )
    command.add_argument(
        "--rounds", type=int, default=20, help="times each file is timed; %(default)s if not given"
    )
    command.add_argument("--threads", type=int, default=1, help="of the runtime; %(default)s if not given")
    add_phone_options(command)
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Plan, measure and show."""
    if options.write_script is not None:
        from converters.runtimes.apple import write_script

        refuse_unwritable(options.write_script)
        sys.stdout.write(f"{write_script(options.write_script, options.files)}\n")
        return DONE
    refuse_elsewhere(options)
    if options.runtime == ANDROID:
        return execute_on_phone(options)
    if options.runtime in APPLE:
        result = time_on_apple(options, bench_result.read)
        deliver(json_text(to_plain(result)), options.json, lambda console: print_result(result, console))
        return DONE
    plan = plan_bench(
        options.files,
        options.runtime,
        rounds=options.rounds,
        threads=options.threads,
        output=options.json,
    )
    with progress().track(f"timing on {plan.runtime.name}", plan.steps) as advance:
        result = time_files(plan, advance)
    deliver(json_text(to_plain(result)), options.json, lambda console: print_result(result, console))
    return DONE


def execute_on_phone(options: argparse.Namespace) -> int:
    """The same on a phone: benchmark_model times, and nothing is compared."""
    from converters.runtimes.benchmark_model import find_tool

    problems = unwritable(options.json)
    if options.accelerator not in (None, *PHONE_ACCELERATORS):
        problems.append(f"--accelerator {options.accelerator}: {ANDROID} has {', '.join(PHONE_ACCELERATORS)}")
    problems += [f"--rounds {options.rounds}: must be 1 or more"] * (options.rounds < 1)
    problems += [f"--threads {options.threads}: must be 1 or more"] * (options.threads < 1)
    files, tool = [], None
    for path in options.files:
        try:
            files.append(_read(path, runtime("arm64")))
        except UserError as error:
            problems += error.problems
    problems += _differing_sizes(files)
    try:
        tool = find_tool(options.benchmark_model)
    except UserError as error:
        problems += error.problems
    if problems or tool is None:
        raise UserError(list(dict.fromkeys(problems)))
    with progress().track("timing on the phone", len(files) * options.rounds) as advance:
        ran = time_on_phone(options, tool, advance)
    result = _phone_result(files, ran, options)
    deliver(json_text(to_plain(result)), options.json, lambda console: print_result(result, console))
    return DONE


@dataclass(frozen=True)
class BenchFile:
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
class BenchPlan:
    """What will be measured, everything about it checked.

    Attributes:
        files: at least one; the others are compared with the first.
        runtime: where.
        rounds: how often each file is timed.
        threads: of the runtime.
    """

    files: tuple[BenchFile, ...]
    runtime: Runtime
    rounds: int
    threads: int

    @property
    def steps(self) -> int:
        """Runs until it is done, of all files together, those before the clock included."""
        return len(self.files) * (1 + WARMUP + self.rounds)


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float


def plan_bench(
    paths: Sequence[Path],
    runtime_name: str,
    *,
    rounds: int = 20,
    threads: int = 1,
    output: Path | None = None,
    one_size: bool = True,
) -> BenchPlan:
    """Check all that can be wrong before anything runs.

    Args:
        paths: one or more; a file may come twice.
        runtime_name: of `converters.runtimes.environments.RUNTIMES`.
        rounds: how often each file is timed, 1 or more.
        threads: of the runtime, 1 or more.
        output: a file the result will be written to.
        one_size: refuse files that take images of different sizes.

    Raises:
        UserError: all mistakes together.
    """
    problems = [f"--rounds {rounds}: must be 1 or more"] * (rounds < 1)
    problems += [f"--threads {threads}: must be 1 or more"] * (threads < 1)
    problems += unwritable(output)
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
    problems += _differing_sizes(files) if one_size else []
    if problems or chosen is None:
        raise UserError(problems)
    by_path = {file.path: file for file in files}
    return BenchPlan(tuple(by_path[path] for path in paths), chosen, rounds, threads)


def time_files(plan: BenchPlan, show: Callable[[int], None] | None = None) -> BenchResult:
    """Run every file of a plan once for its output, then all of them in turns against the clock.

    Args:
        plan: what to measure.
        show: called with the number of steps done, of `plan.steps`.

    Raises:
        ToolError: the runtime crashes; the message names the file it was at.
    """
    from converters.runtimes.running import FileRun, run_files
    from edgeprune.pipeline.environment import processor

    tasks = [FileRun(file.path, image(file)) for file in plan.files]
    ran = run_files(
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
    timings = [
        _timing(file, answer, first, memory[file])
        for file, answer in zip(plan.files, ran.answers, strict=True)
    ]
    channels, height_px, width_px = plan.files[0].spec.shape
    return BenchResult(
        runtime=plan.runtime.name,
        description=plan.runtime.description,
        version=ran.version,
        emulated=plan.runtime.emulated,
        clock="processor time" if plan.runtime.emulated else "wall time",
        processor=processor(),
        threads=plan.threads,
        warmup=WARMUP,
        rounds=plan.rounds,
        image=ImageSize(channels=channels, height_px=height_px, width_px=width_px),
        files=tuple(timings),
    )


def _phone_result(files: Sequence[BenchFile], ran: PhoneRan, options: argparse.Namespace) -> BenchResult:
    """What a phone's times are, as those of other runtimes are told."""
    from converters.runtimes.android import RUNS_A_ROUND, WARMUP_RUNS

    phone, first = ran.phone, ran.files[0]
    accelerator = options.accelerator or "cpu"
    by_cpu = accelerator == "cpu"
    thermal = ", ".join("unknown" if status is None else str(status) for status in ran.thermal)
    channels, height_px, width_px = files[0].spec.shape
    return BenchResult(
        runtime=ANDROID if by_cpu else f"{ANDROID}-{accelerator}",
        description=f"benchmark_model on {phone.model}, Android {phone.android}, {phone.chip}",
        version=f"benchmark_model {ran.tool[:12]}",
        clock="wall time",
        processor=phone.chip,
        threads=options.threads,
        warmup=WARMUP_RUNS,
        rounds=options.rounds,
        image=ImageSize(channels=channels, height_px=height_px, width_px=width_px),
        files=tuple(
            _phone_timing(file, times, first, by_cpu) for file, times in zip(files, ran.files, strict=True)
        ),
        device={
            **vars(phone),
            "accelerator": accelerator,
            "runs_a_round": str(RUNS_A_ROUND),
            "thermal_status": thermal,
            "benchmark_model_sha256": ran.tool,
        },
    )


def _phone_timing(file: BenchFile, times: PhoneTimes, first: PhoneTimes, by_cpu: bool) -> FileTiming:
    found, ratio = spread(times.milliseconds), speed(times.milliseconds, first.milliseconds)
    dense = (f"{ANDROID} runs it dense on an accelerator",)
    notes = (times.note,) if times.note else ()
    return FileTiming(
        path=str(file.path),
        bytes=size_bytes(file.path),
        sha256=sha256(file.path),
        refused=times.refused,
        sparse_kernels=file.sparse and by_cpu,
        problems=(*notes, *(file.problems if by_cpu else dense)),
        milliseconds=times.milliseconds,
        median_ms=None if found is None else found.median,
        quartiles_ms=None if found is None else (found.low, found.high),
        speed=None if ratio is None else ratio.median,
        speed_quartiles=None if ratio is None else (ratio.low, ratio.high),
        speed_reason=times.refused or ("the first file is refused" if first.refused else None),
        difference_reason="benchmark_model gives no values",
        load_memory_bytes=times.load_memory_bytes,
        load_memory_reason=None if times.load_memory_bytes else "benchmark_model does not say",
    )


def load_memory(file: BenchFile) -> tuple[int | None, str | None]:
    """Bytes of memory a file adds to a fresh process of LiteRT on this machine, or why that is not known."""
    from converters.runtimes.running import FileRun, run_files

    try:
        (answer,) = run_files(
            [FileRun(file.path, image(file))], runtime("host"), limit_s=SECONDS_TO_START
        ).answers
    except ToolError as error:
        return None, str(error)
    if answer.refused is not None:
        return None, f"LiteRT on this machine refuses it: {answer.refused}"
    if answer.load_memory_bytes is None:
        return None, "only Linux tells the peak of a process's memory from a moment on"
    return answer.load_memory_bytes, None


def image(file: BenchFile) -> np.ndarray:
    """What a file is fed, (1, ...) float32 in its own layout: random, the same for all of one range."""
    import numpy as np

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
    import numpy as np

    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(median, low, high)


def speed(milliseconds: Sequence[float], first: Sequence[float]) -> Spread | None:
    """How many times as fast as the first file, round by round; None where one of them is refused.

    A round's times were taken one after the other, so a machine that slows down for a while moves their ratio
    less than it moves the times.
    """
    if not milliseconds or not first:
        return None
    import numpy as np

    return spread(np.divide(first, milliseconds).tolist())


# --- For people ---------------------------------------------------------------------------------------------


def print_result(result: BenchResult, console: Console) -> None:
    """Print the table and what must be known to read it."""
    console.print(_table(result))
    for line in notes(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def notes(result: BenchResult) -> list[str]:
    """What must be known to read the table, a line each."""
    size = f"{result.image.height_px}x{result.image.width_px} px, " if result.image else ""
    threads = f"{result.threads} thread{'s' * (result.threads > 1)}"
    lines = [
        f"{result.version}, {result.description}; {size}{threads}",
        f"{result.rounds} interleaved rounds: medians, in brackets the quartiles",
        f"speed (round by round) and difference against {result.files[0].path}",
        _memory_words(result),
    ]
    if result.emulated:
        lines.append("emulated: the times say nothing by themselves, only how files compare in this run")
    told: dict[str, FileTiming] = {}
    for timing in result.files:
        if told.setdefault(timing.path, timing) is timing:
            lines += _remarks(timing)
    return lines


def _memory_words(result: BenchResult) -> str:
    if all(timing.load_memory_bytes is None for timing in result.files):
        return "memory: not known"
    if result.device is None:
        return "memory: what loading and running it once adds to a new process of LiteRT on this machine"
    return "memory: what benchmark_model says that the file added to its own"


def _remarks(timing: FileTiming) -> list[str]:
    lines = []
    if timing.refused is not None:
        lines.append(f"{timing.path}: refused by the runtime: {timing.refused}")
    if timing.problems:
        unknown = timing.sparse_kernels is None
        lines.append(f"{timing.path}: {'' if unknown else 'no sparse kernels: '}{timing.problems[0]}")
    if timing.difference_reason is not None and timing.refused is None:
        lines.append(f"{timing.path}: no difference given: {timing.difference_reason}")
    return lines


def _table(result: BenchResult) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in ("bytes", "memory", "ms", "× speed", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("sparse kernels")
    for timing in result.files:
        table.add_row(
            timing.path,
            f"{timing.bytes:,}",
            "–" if timing.load_memory_bytes is None else bytes_human(timing.load_memory_bytes),
            "refused" if timing.refused else _shown(timing.median_ms, timing.quartiles_ms),
            _shown(timing.speed, timing.speed_quartiles),
            "–" if timing.difference is None else f"{timing.difference:.1e}" if timing.difference else "0",
            {True: "yes", False: "no", None: "–"}[timing.sparse_kernels],
        )
    return table


def _shown(median: float | None, quartiles: tuple[float, float] | None) -> str:
    return (
        "–"
        if median is None or quartiles is None
        else f"{median:.2f} ({quartiles[0]:.2f}–{quartiles[1]:.2f})"
    )


# --- Small things -------------------------------------------------------------------------------------------


def _read(path: Path, where: Runtime | None) -> BenchFile:
    if path.suffix not in timed_suffixes():
        raise UserError(f"{path}: expected a {' or '.join(timed_suffixes())} file")
    lint_runtime = where.lint_runtime if where is not None else "host"
    found = format_of(path).timing_input(path, lint_runtime)
    return BenchFile(path, found.spec, found.channels_last, found.sparse, found.problems)


def _differing_sizes(files: Sequence[BenchFile]) -> list[str]:
    """Times of different sizes compare nothing."""
    return [
        f"{file.path} takes {_size(file)}, {files[0].path} takes {_size(files[0])}: "
        "compare files of one image size"
        for file in files[1:]
        if file.spec.shape != files[0].spec.shape
    ]


def _size(file: BenchFile) -> str:
    channels, height_px, width_px = file.spec.shape
    return f"{height_px}x{width_px} px of {channels} channels"


def _timing(
    file: BenchFile,
    answer: Answer,
    first: tuple[BenchFile, Answer],
    memory: tuple[int | None, str | None],
) -> FileTiming:
    difference, difference_reason = _difference(file, answer, *first)
    times = spread(answer.milliseconds)
    ratio = speed(answer.milliseconds, first[1].milliseconds)
    return FileTiming(
        path=str(file.path),
        bytes=size_bytes(file.path),
        sha256=sha256(file.path),
        refused=answer.refused,
        sparse_kernels=file.sparse,
        problems=file.problems,
        milliseconds=answer.milliseconds,
        median_ms=None if times is None else times.median,
        quartiles_ms=None if times is None else (times.low, times.high),
        speed=None if ratio is None else ratio.median,
        speed_quartiles=None if ratio is None else (ratio.low, ratio.high),
        speed_reason=answer.refused or ("the first file is refused" if first[1].refused else None),
        difference=difference,
        difference_reason=difference_reason,
        load_memory_bytes=memory[0],
        load_memory_reason=memory[1],
    )


def _difference(
    file: BenchFile, answer: Answer, first: BenchFile, first_answer: Answer
) -> tuple[float | None, str | None]:
    import numpy as np

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
