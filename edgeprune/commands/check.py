"""`edgeprune check`: a finished run, or any model files, checked against a budget."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.facts import download_bytes, sha256, size_bytes
from converters.format import FORMATS, format_of, suffixes
from converters.targets import TARGETS
from edgeprune import budget as budgets
from edgeprune.budget import Budget, Limits
from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, OVER_BUDGET, STDOUT, deliver, json_text, refuse_unwritable
from edgeprune.errors import UserError
from edgeprune.evaluation import bench_result
from edgeprune.evaluation.bench_result import BenchResult
from edgeprune.evaluation.records import Row
from edgeprune.report import records
from edgeprune.report.alongside import BENCHES
from edgeprune.report.formatting import bytes_exact, points_fine
from edgeprune.report.verdict import (
    Judgement,
    Measured,
    TargetVerdict,
    evaluate,
    judge,
    reasons,
    target_lines,
    with_scores,
)
from edgeprune.tasks import metric, metrics

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from converters.facts import LayerFacts

SCHEMA = 1
DENSE = "dense"
HEADINGS = {
    "bytes": "bytes",
    "download_bytes": "bytes to\ndownload",
    "load_memory_bytes": "memory\nadded",
    "time_ratio": "time over\ndense",
}
EXAMPLES = """\
  edgeprune check runs/mine --budget budget.toml
  edgeprune check runs/mine --budget budget.toml --bench bench.json --junit check.xml
  edgeprune check runs/mine --budget budget.toml --confidence 0.95
  edgeprune check model.tflite --budget budget.toml --target litert-arm64-int8 --only bytes

A budget.toml, every line of which can be left out:
  top1_drop_points = 0.5            # against the dense float32 model
  [bytes]
  coreml-ios16 = 1_100_000          # of the file on disk
  [target.litert-arm64-int8]        # all limits of one target
  bytes = 600_000
  download_bytes = 500_000          # deflated, as a store sends it
  top1_drop_points = 1.0
  load_memory_bytes = 20_000_000    # added at the peak by loading it and running it once
  time_ratio = 0.6                  # of the dense file's time

A limit that cannot be judged is not met. Run as a step of a GitHub workflow it
writes annotations too.
"""
EXIT_STATUS = """\
exit status: 0 within budget; 1 over budget, a limit that could not be judged,
or a file that is not the one that was measured; 2 a mistake in what was asked
for, or a file that cannot be used."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    kinds = " and ".join(f"{format.suffix} {format.kind}s" for format in FORMATS.values())
    command.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN|FILE",
        help=f"a run folder; or {kinds} from anywhere",
    )
    command.add_argument("--budget", type=Path, metavar="TOML", help="the recipe's own budget if not given")
    command.add_argument(
        "--target",
        metavar="NAME",
        help="that the files are for; guessed from name, budget and what is stored if not given",
    )
    command.add_argument(
        "--bench",
        type=Path,
        action="append",
        default=[],
        metavar="JSON",
        help="times and load memory, as edgeprune bench --json writes them; may be repeated",
    )
    command.add_argument(
        "--only",
        nargs="+",
        choices=budgets.limit_names(),
        metavar="LIMIT",
        help=f"judge these alone: {', '.join(budgets.limit_names())}",
    )
    command.add_argument(
        "--confidence",
        type=float,
        metavar="C",
        help="judge points lost with this confidence, above 0.5 and below 1: 0.95 says met or not met only "
        "where a limit is on the same side of all but 5 %% of what the images leave open, and otherwise that "
        "it cannot be told, which does not pass (default: the points as measured)",
    )
    command.add_argument("--junit", type=Path, metavar="OUT", help="write JUnit XML here too")
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Check, show, and tell CI."""
    from converters.files import write_text
    from edgeprune.commands import ci_annotations

    refuse_unwritable(options.json, options.junit)
    result = check(
        CheckOptions(
            tuple(options.paths),
            options.budget,
            options.target,
            tuple(options.bench),
            None if options.only is None else tuple(options.only),
            options.confidence,
        )
    )
    deliver(json_text(to_plain(result)), options.json, lambda console: print_result(result, console))
    if options.junit is not None:
        write_text(options.junit, ci_annotations.junit(result))
    if ci_annotations.on_github():
        stream = sys.stderr if options.json == STDOUT else sys.stdout
        stream.writelines(f"{line}\n" for line in ci_annotations.github_annotations(result))
    return DONE if result.ok else OVER_BUDGET


class Status(str, Enum):
    """What came of holding something against its limits."""

    WITHIN = "within budget"
    OVER = "over budget"
    UNJUDGED = "not measured"
    UNTOLD = "cannot be told"
    CHANGED = "not the file that was measured"


@dataclass(frozen=True)
class CheckOptions:
    """What the command line asks for.

    Attributes:
        paths: one run folder, or files from anywhere.
        budget: a budget.toml; None: that of the run's recipe.
        target: of files, where the budget and the file do not say it.
        bench: what `edgeprune bench --json` wrote, for times and load memory; empty: of a run what its
            folder has, `bench*.json`.
        only: the limits to judge, of `edgeprune.budget.LIMITS`; None: all.
        confidence: with which points lost of a run are judged, above 0.5 and below 1; None: as measured.
    """

    paths: tuple[Path, ...]
    budget: Path | None = None
    target: str | None = None
    bench: tuple[Path, ...] = ()
    only: tuple[str, ...] | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class JudgedFile:
    """One file and its limits, each judged."""

    path: Path
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True)
class Entry:
    """One thing that passes or fails: a target of a run, a file from elsewhere, or a file that changed.

    Attributes:
        name: of the target or the file.
        target: its target.
        status: passes where it is `Status.WITHIN`.
        files: all that were looked at.
        nearest: the one to ship, or the one that is nearest to it; None without files.
        told: what is to be said about it, a line each.
    """

    name: str
    target: str
    status: Status
    files: tuple[JudgedFile, ...]
    nearest: JudgedFile | None
    told: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it passes."""
        return self.status is Status.WITHIN


@dataclass(frozen=True)
class CheckResult:
    """All that was result.

    Attributes:
        subject: the run folder, or "files".
        headline: the verdict in one line.
        entries: one for each target of the budget or file.
        next_step: what to do now.
        notes: what must be known to read the figures.
    """

    subject: str
    headline: str
    entries: tuple[Entry, ...]
    next_step: str
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything passes."""
        return bool(self.entries) and all(entry.ok for entry in self.entries)


def check(options: CheckOptions) -> CheckResult:
    """Check a run, or any model files, against a budget.

    Raises:
        UserError: all mistakes in what was asked for, the budget's among them.
    """
    problems = []
    runs = [path for path in options.paths if path.suffix not in suffixes()]
    if runs and len(options.paths) > 1:
        problems.append(
            f"{', '.join(map(str, runs))}: check one run folder, or {' and '.join(suffixes())} files"
        )
    if runs and options.target is not None:
        problems.append("--target: a run says itself what its files are for")
    if not runs and options.budget is None:
        problems.append("files carry no budget: give one with --budget budget.toml")
    if options.target is not None and options.target not in TARGETS:
        problems.append(f"--target: unknown target {options.target!r}: choose from {', '.join(TARGETS)}")
    if options.confidence is not None and not 0.5 < options.confidence < 1:
        problems.append(f"--confidence {options.confidence:g}: above 0.5 and below 1; 0.95 is usual")
    if options.confidence is not None and not runs:
        problems.append("--confidence: files carry no labelled images: check the run that made them")
    limits, measurements = None, []
    try:
        limits = None if options.budget is None else _narrowed(budgets.read(options.budget), options)
    except UserError as error:
        problems += error.problems
    benches = options.bench
    if len(runs) == 1 and not benches:
        benches = tuple(sorted(runs[0].glob(BENCHES)))
    for path in benches:
        try:
            measurements.append(bench_result.read(path))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    notes = [
        f"load memory and times are those of {path}; times on {measurement.runtime}"
        for path, measurement in zip(benches, measurements, strict=True)
    ]
    if runs:
        return _check_run(runs[0], limits, options, measurements, notes)
    assert limits is not None  # Files without a budget were refused above.
    return _check_files(options, limits, measurements, notes)


def _narrowed(limits: Budget, options: CheckOptions) -> Budget:
    if options.only is None:
        return limits
    kept = limits.only(options.only)
    if not kept:
        raise UserError(
            f"--only {' '.join(options.only)}: {options.budget or 'the budget'} has no such limit"
        )
    return kept


# --- A run --------------------------------------------------------------------------------------------------


def _check_run(
    folder: Path,
    limits: Budget | None,
    options: CheckOptions,
    measurements: Sequence[BenchResult],
    notes: Sequence[str],
) -> CheckResult:
    report = records.read(folder)
    if limits is None:
        own = budgets.from_plain(report.recipe.get("budget"))
        if not own:
            raise UserError(f"{folder}: its recipe sets no budget: give one with --budget budget.toml")
        limits = _narrowed(own, options)
    verdict = evaluate(
        limits, report.rows, _measuring(folder, report.rows, limits, measurements, options.confidence)
    )
    entries = [_target_entry(folder, target) for target in verdict.targets if target.budgeted]
    changed = _changed(folder, report.rows)
    headline, next_step = verdict.headline, verdict.next_step()
    if changed:
        names = ", ".join(entry.name for entry in changed)
        headline = f"{Status.CHANGED.value.capitalize()}: {names}; for the rest: {headline.lower()}"
        next_step = f"Measure the files again: edgeprune run {shlex.quote(str(folder / 'recipe.toml'))}"
    notes = (*notes, *_elsewhere(verdict.budget, [entry.target for entry in entries], measurements))
    return CheckResult(str(folder), headline, (*entries, *changed), next_step, notes)


def _target_entry(folder: Path, target: TargetVerdict) -> Entry:
    files = {file.row.path: JudgedFile(folder / file.row.path, file.judgements) for file in target.files}
    nearest = target.nearest
    return Entry(
        target.target,
        target.target,
        _status(target),
        tuple(files.values()),
        None if nearest is None else files[nearest.row.path],
        tuple(target_lines(target)),
    )


def _status(target: TargetVerdict) -> Status:
    if target.ok:
        return Status.WITHIN
    if target.uncertain:
        return Status.UNTOLD
    return Status.UNJUDGED if target.open else Status.OVER


def _changed(folder: Path, rows: Sequence[Row]) -> list[Entry]:
    """The files that are not there any more, or hold other bytes than those that were measured."""
    with ThreadPoolExecutor() as pool:
        reasons = pool.map(lambda row: _difference(folder / row.path, row), rows)
        return [
            Entry(
                row.path,
                row.target,
                Status.CHANGED,
                (),
                JudgedFile(folder / row.path, ()),
                (f"{row.path}: {why}",),
            )
            for row, why in zip(rows, reasons, strict=True)
            if why
        ]


def _difference(path: Path, row: Row) -> str:
    if not path.exists():
        return "no such file in the run folder"
    if (found := size_bytes(path)) != row.bytes:
        return f"it has {bytes_exact(found)} bytes now, {bytes_exact(row.bytes)} were measured"
    return "" if sha256(path) == row.sha256 else "its content is not what was measured: other sha256"


def _measuring(
    folder: Path,
    rows: Sequence[Row],
    limits: Budget,
    measurements: Sequence[BenchResult],
    confidence: float | None,
) -> Callable[[Row], Measured]:
    dense = {row.target: row for row in rows if row.variant == DENSE}

    def measured(row: Row) -> Measured:
        reference = dense.get(row.target)
        # All files of the target at once, the dense one first, as times are compared with it.
        files = sorted(
            (other for other in rows if other.target == row.target), key=lambda r: r is not reference
        )
        output = folder / BENCHES.replace("*", f"-{row.target}")
        paths = [str(folder / other.path) for other in files]
        missing = _how_to_bench(limits.limits(row.target), row.target, paths, output, "check again")
        found = Measured(
            row.bytes,
            {},
            bench_result.load_memory_bytes(measurements, row.sha256),
            bench_result.time_ratio(measurements, row.sha256, reference.sha256) if reference else None,
            missing if reference else {**missing, "time_ratio": "the run has no dense file to compare with"},
            _download_bytes(folder / row.path, row, limits.limits(row.target)),
        )
        return with_scores(found, row, confidence)

    return measured


def _download_bytes(path: Path, row: Row, limits: Limits) -> int | None:
    """As measured; of an older report's row only where it is limited: deflating takes a second for 20 MB."""
    if row.download_bytes is not None or limits.download_bytes is None or not path.exists():
        return row.download_bytes
    return download_bytes(path)


def _how_to_bench(
    limits: Limits, target: str, files: Sequence[str], output: Path, then: str
) -> dict[str, str]:
    """The command that measures files, on the target's runtime where times are limited."""
    runtime = "host" if limits.time_ratio is None else _runtime(target)
    on = "" if runtime == "host" else f" --runtime {runtime}"
    command = f"edgeprune bench {shlex.join(files)}{on} --json {shlex.quote(str(output))}"
    return dict.fromkeys(budgets.BENCHED, f"run {command}, then {then}")


def _elsewhere(limits: Budget, targets: Sequence[str], measurements: Sequence[BenchResult]) -> Iterator[str]:
    """Say where times are not of the runtime that a target's files are for."""
    for target in dict.fromkeys(targets):
        for runtime in dict.fromkeys(measurement.runtime for measurement in measurements):
            if limits.limits(target).time_ratio is not None and runtime != _runtime(target):
                yield f"times on {runtime} stand in for those of {target} on {_runtime(target)}"


def _runtime(target: str) -> str:
    """Where a target's files are timed on this machine."""
    if TARGETS[target].platform == "web":
        return "browser"
    return "host" if platform.machine() in ("aarch64", "arm64") else "arm64"


# --- Files from anywhere ------------------------------------------------------------------------------------


def _check_files(
    options: CheckOptions, limits: Budget, measurements: Sequence[BenchResult], notes: Sequence[str]
) -> CheckResult:
    problems: list[str] = []
    entries = []
    for path in options.paths:
        try:
            target = options.target or guess_target(path, limits.targets)
            _refuse_format(path, target)
            entries.append(_file_entry(path, target, _limits_of(limits, target, path), measurements))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    broken = [f"{entry.name} ({entry.status.value})" for entry in entries if not entry.ok]
    headline = f"Not within budget: {', '.join(broken)}" if broken else "Within budget"
    unjudged = any(entry.status is Status.UNJUDGED for entry in entries)
    over = any(entry.status is Status.OVER for entry in entries)
    steps = ["Prune more, or raise the budget."] * over
    steps += ["Measure what is missing, or name the limits to judge with --only."] * unjudged
    notes = (*notes, *_elsewhere(limits, [entry.target for entry in entries], measurements))
    return CheckResult("files", headline, tuple(entries), " ".join(steps) or "Ship the files.", notes)


def guess_target(path: Path, budgeted: Sequence[str]) -> str:
    """The target a file is for: what its name ends in, or else the only one of the budget that it can be for.

    Args:
        path: of the file.
        budgeted: the targets the budget names; none: it holds for every target.

    Raises:
        UserError: there is no such file, or it may be for several targets or for none.
    """
    format = format_of(path)
    own = [name for name, target in TARGETS.items() if target.format == format.name]
    named = [name for name in own if path.stem == name or path.stem.endswith(f"-{name}")]
    if named:
        return max(named, key=len)
    candidates = [name for name in budgeted or own if name in own]
    if len(candidates) > 1:
        storage = _storage(_layers(path))
        candidates = [name for name in candidates if TARGETS[name].storage.value.endswith(storage)]
    if len(candidates) != 1:
        which = (
            f"it may be for {' or '.join(candidates)}" if candidates else "the budget has no target it is for"
        )
        raise UserError(f"{path}: {which}: name it with --target")
    return candidates[0]


def _refuse_format(path: Path, target: str) -> None:
    format = FORMATS[TARGETS[target].format]
    if format is not format_of(path):
        raise UserError(f"{path}: {target} takes {format.suffix} files")


def _limits_of(limits: Budget, target: str, path: Path) -> Limits:
    if limits.targets and target not in limits.targets:
        raise UserError(
            f"{path}: it is for {target}, which the budget does not name, "
            f"but {', '.join(limits.targets)}: name one with --target"
        )
    return limits.limits(target)


def _file_entry(path: Path, target: str, limits: Limits, measurements: Sequence[BenchResult]) -> Entry:
    _layers(path)  # A file that cannot be read is within no budget.
    digest = sha256(path)
    compared = [str(path)] if limits.time_ratio is None else ["DENSE.tflite", str(path)]
    measured = Measured(
        size_bytes(path),
        {},
        bench_result.load_memory_bytes(measurements, digest),
        bench_result.time_ratio(measurements, digest),
        {
            **dict.fromkeys(
                [f"{known.key}{budgets.DROP}" for known in metrics()],
                "a file carries no labelled images: check the run that made it, "
                "or leave this limit out: --only bytes",
            ),
            **_how_to_bench(limits, target, compared, Path("bench.json"), "check with --bench bench.json"),
        },
        None if limits.download_bytes is None else download_bytes(path),
    )
    file = JudgedFile(path, judge(limits, measured))
    why = reasons(file.judgements)
    over = any(judgement.ok is False for judgement in file.judgements)
    status = Status.OVER if over else Status.UNJUDGED if why else Status.WITHIN
    told = "; ".join(why) or status.value
    size = f"{bytes_exact(measured.bytes)} bytes"
    return Entry(str(path), target, status, (file,), file, (f"{path}: {size} for {target}; {told}",))


def _layers(path: Path) -> Sequence[LayerFacts]:
    return format_of(path).inspect(path).layers


def _storage(layers: Sequence[LayerFacts]) -> str:
    """How most weights are stored: "float32", "int8", ..."""
    weights: dict[str, int] = {}
    for layer in layers:
        count = 1
        for size in layer.shape:
            count *= size
        name = layer.encoding.removeprefix("sparse ").partition(",")[0]
        weights[name] = weights.get(name, 0) + count
    return max(weights, key=lambda name: weights[name], default="")


# --- For people and programs --------------------------------------------------------------------------------


def to_plain(result: CheckResult) -> dict[str, Any]:
    """Everything, as plain data for JSON."""
    return {
        "schema": SCHEMA,
        "ok": result.ok,
        "checked": result.subject,
        "headline": result.headline,
        "next_step": result.next_step,
        "notes": list(result.notes),
        "entries": [
            {
                "name": entry.name,
                "target": entry.target,
                "ok": entry.ok,
                "status": entry.status.value,
                "nearest": None if entry.nearest is None else str(entry.nearest.path),
                "files": [
                    {"path": str(file.path), "limits": [_limit_to_plain(j) for j in file.judgements]}
                    for file in entry.files
                ],
                "told": list(entry.told),
            }
            for entry in result.entries
        ],
    }


def print_result(result: CheckResult, console: Console) -> None:
    """Print a line for each entry, what is wrong with the broken ones, and what to do."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    limits = [
        name
        for name in budgets.limit_names()
        if any(judgement.limit == name for entry in result.entries for judgement in _judgements(entry))
    ]
    # Two lines a row, the limit below what was measured: four limits fit into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("target\nfile", overflow="fold")
    for name in limits:
        table.add_column(_heading(name), justify="right", no_wrap=True)
    for entry in result.entries:
        judged = {judgement.limit: judgement for judgement in _judgements(entry)}
        file = "no file" if entry.nearest is None else entry.nearest.path.name
        table.add_row(
            Text("✓" if entry.ok else "✕", style="green" if entry.ok else "red"),
            Text(f"{entry.target}\n{file}"),
            *(_cell(judged.get(name)) for name in limits),
        )
    console.print(table)
    console.print(Text(result.headline, style="bold green" if result.ok else "bold red"), soft_wrap=True)
    for line in [*_complaints(result), *result.notes, f"Next: {result.next_step}"]:
        console.print(Text(line), soft_wrap=True)


def _heading(limit: str) -> str:
    """Of a column: points of accuracy are just points."""
    if not limit.endswith(budgets.DROP):
        return HEADINGS[limit]
    word = metric(limit.removesuffix(budgets.DROP)).word
    return "points\nlost" if word == "accuracy" else f"{word}\nlost"


def _complaints(result: CheckResult) -> Iterator[str]:
    for entry in result.entries:
        yield from entry.told


def _judgements(entry: Entry) -> Sequence[Judgement]:
    return () if entry.nearest is None else entry.nearest.judgements


def _cell(judgement: Judgement | None) -> Text:
    from rich.text import Text

    if judgement is None:
        return Text("–")
    measured = "?" if judgement.measured is None else _figure(judgement.limit, judgement.measured)
    most = _figure(judgement.limit, judgement.most)
    return Text(f"{measured}\n≤ {most}", style="" if judgement.ok else "red")


def _figure(limit: str, value: float) -> str:
    return bytes_exact(int(value)) if limit.endswith("bytes") else points_fine(value)


def _limit_to_plain(judgement: Judgement) -> Mapping[str, Any]:
    interval = judgement.interval
    unmeasured = judgement.ok is None and not judgement.uncertain
    return {
        "limit": judgement.limit,
        "most": judgement.most,
        "measured": judgement.measured,
        "ok": judgement.ok,
        "reason": f"not measured: {judgement.words}" if unmeasured else judgement.words or None,
        "interval": None if interval is None else [interval.least, interval.most],
    }
