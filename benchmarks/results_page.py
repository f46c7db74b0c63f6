"""What `run_results.py` found, as pages of `docs/results/`: one a model and data set, and the index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litert_files import provenance, table

from converters.files import write_text
from edgeprune.evaluation.records import Examination, Row, Training
from edgeprune.report import plots, summary
from edgeprune.report.formatting import points_lost
from edgeprune.report.records import Report
from edgeprune.report.verdict import RECOMMENDED_DROP_POINTS

DENSE, CHANNELS, LEAN = "dense", "channels", "lean"
CHANNELS_AND_BLOCKS = "channels+block"
FLOAT16 = "dense-float16"
# What "times smaller" is measured against: float16 as Core ML packages are by default, float32 in LiteRT.
BASELINES = {"Core ML": "coreml-ios16", "LiteRT": "litert-arm64"}
STATIC_INT8 = f"{DENSE}-litert-arm64-static-int8"
SERIES_COLOURS = ("#0b62c4", "#b3400d", "#1a7f4b", "#8250df", "#9a6700", "#bf3989")
COMMAND = re.compile(r"`((?:python |torchrun )?[^`]*benchmarks/\w+\.py[^`]*)`")
RUN_RESULTS = "benchmarks/run_results.py"


@dataclass(frozen=True)
class Peer:
    """A file that someone would ship instead of ours.

    Attributes:
        name: what was done.
        file: its format in words.
        bytes: on disk.
        top1: of the file on all held-out images, 0 to 1.
        stem: what its file is called among the timed ones; "": it was not timed.
    """

    name: str
    file: str
    bytes: int
    top1: float
    stem: str = ""


@dataclass(frozen=True)
class Result:
    """One model on one data set.

    Attributes:
        model: of torchvision, or timm/NAME.
        data: the data set's name.
        dense_epochs: of each cycle.
        dense_trainings: how each cycle was trained, as far as it was written down.
        report: of the run.
        peers: files of other tools.
        times: by image size in pixels and runtime, what `edgeprune bench` says; empty: nothing was timed.
    """

    model: str
    data: str
    dense_epochs: Sequence[int]
    dense_trainings: Sequence[Mapping[str, Any]]
    report: Report
    peers: Sequence[Peer]
    times: Mapping[int, Mapping[str, Any]]

    @property
    def slug(self) -> str:
        """What its pages are called."""
        return slug(self.model, self.data)

    @property
    def title(self) -> str:
        """Of its page."""
        return f"{self.model} on {self.data}"

    @property
    def dense_top1(self) -> float:
        """Of the float32 torch model, 0 to 1."""
        return next(training.score for training in self.report.trainings if training.variant == DENSE)

    @property
    def near(self) -> list[Row]:
        """The files that lose little enough."""
        return [
            row
            for row in self.report.rows
            if round(100 * (self.dense_top1 - row.score), 6)
            <= RECOMMENDED_DROP_POINTS  # 0.8505 - 0.8455 is 0.005.
        ]

    def dense_file(self, form: str) -> Row:
        """The one that the files of a format are compared with."""
        wanted = (DENSE, BASELINES[form])
        return next(row for row in self.report.rows if (row.variant, row.target) == wanted)

    def speeds(self, size_px: int, where: str) -> dict[str, float]:
        """How many times as fast as the dense float32 file, by the file's stem."""
        files = self.times.get(size_px, {}).get(where, {"files": []})["files"]
        return {Path(row["path"]).stem: row["speed"] for row in files if row["speed"]}


def slug(model: str, data: str) -> str:
    """What the pages of a model on a data set are called.

    >>> slug("timm/lcnet_050", "tiny-imagenet-50")
    'lcnet_050_tiny_imagenet_50'
    """
    return f"{model.removeprefix('timm/')}_{data.replace('-', '_')}"


def write(result: Result, folder: Path) -> None:
    """The page, its pictures and the facts that the index repeats, and the index again."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        f"{result.slug}_{form.lower().replace(' ', '')}.svg": standing_alone(picture)
        for form, picture in plots.size_against_accuracy(result.report).items()
    }
    for name, picture in pictures.items():
        write_text(folder / name, picture)
    facts = {
        "title": result.title,
        "summary": summary_cells(result),
        "pictures": list(pictures),
        **{key: provenance()[key] for key in ("command", "date", "processor")},
        "trained_on": trained_on(result),
        "not_measured": not_measured(result),
        "times": {str(size_px): told_times(times) for size_px, times in result.times.items()},
    }
    write_text(folder / f"{result.slug}.json", json.dumps(facts, indent=1) + "\n")
    write_text(folder / f"{result.slug}.md", "\n".join(page(result, list(pictures))) + "\n")
    write_index(folder)


def told_times(by_runtime: Mapping[str, Any]) -> dict[str, Any]:
    """What was timed at one image size, without the single rounds."""
    return {
        where: {
            **{key: run[key] for key in ("version", "description", "clock", "threads", "rounds")},
            "files": [
                {key: row[key] for key in ("path", "median_ms", "quartiles_ms", "speed", "speed_quartiles")}
                for row in run["files"]
            ],
        }
        for where, run in by_runtime.items()
    }


def page(result: Result, pictures: Sequence[str]) -> list[str]:
    """Everything about one model on one data set."""
    about, size_px = result.report.environment, result.report.recipe["image_size_px"]
    return [
        f"# {result.title}",
        "",
        f"{about['data']['train_images']:,} training images, {about['data']['held_out_images']:,} held-out "
        f"ones, {size_px} px. The dense model was trained for {' + '.join(map(str, result.dense_epochs))} "
        f"epochs and has **{100 * result.dense_top1:.2f} %** as a float32 torch model; it then taught every "
        "variant. Bytes and top-1 are those of the file, on all held-out images.",
        "",
        *(f"![size against accuracy]({picture})" for picture in pictures),
        "",
        f"{legend(result.report)}; filled and named: no other file is both smaller and better.",
        "",
        f"## Within {RECOMMENDED_DROP_POINTS:g} points of dense",
        "",
        *(f"- {line}" for line in best_lines(result)),
        "",
        "## What was trained",
        "",
        *training_table(result),
        "",
        "## Files",
        "",
        *file_table(result),
        "",
        "The dense static int8 file is made by ai-edge-quantizer, the dense 4 and 6 bit tables are "
        "coremltools': what one would ship without pruning.",
        "",
        *speed_notes(result),
        "## Robustness to image corruptions",
        "",
        *robustness_table(result.report),
        "",
        "## Not measured",
        "",
        *(f"- {line}" for line in not_measured(result)),
        "",
        f"Made by `{provenance()['command']}` on {provenance()['date']}, {provenance()['processor']}; "
        f"torch {about['torch']}, coremltools {about['coremltools']}, litert-torch {about['litert_torch']}.",
    ]


def legend(report: Report) -> str:
    """The marks of the pictures.

    A report of "dense" and "channels": "● dense, ■ channels".
    """
    names = summary.variants(report)
    return ", ".join(f"{plots.GLYPHS[place % len(plots.GLYPHS)]} {name}" for place, name in enumerate(names))


def best_lines(result: Result) -> list[str]:
    """The smallest file of each format, and the fastest on each runtime, that lose little enough."""
    sizes = [
        f"{form}, {what}: {smallest(result, form, rows)}"
        for form, target in BASELINES.items()
        for what, rows in (
            ("the smallest file", [row for row in result.near if summary.format_name(row.target) == form]),
            (
                "the smallest by removed channels alone",
                [row for row in result.near if row.target == target and row.variant in (CHANNELS, LEAN)],
            ),
        )
    ]
    fastest_ones = [
        f"{where} at {size_px} px, the fastest: {fastest(result, size_px, where)}"
        for size_px, by_runtime in result.times.items()
        for where in by_runtime
    ]
    return [*sizes, *fastest_ones]


def smallest(result: Result, form: str, rows: Sequence[Row]) -> str:
    """The smallest of these files, against the dense one."""
    if not rows:
        return "none."
    best, dense = min(rows, key=lambda row: row.bytes), result.dense_file(form)
    return (
        f"{best.variant} as {best.target}, {best.bytes:,} bytes, "
        f"{dense.bytes / best.bytes:.2f} times smaller than dense {dense.target} "
        f"({100 * (1 - best.bytes / dense.bytes):.1f} % less), "
        f"{points_lost(100 * (result.dense_top1 - best.score))}."
    )


def fastest(result: Result, size_px: int, where: str) -> str:
    """The fastest of the files near enough, against dense float32 and dense static int8, if it was timed."""
    speeds = result.speeds(size_px, where)
    best = fastest_of(result.near, speeds)
    if best is None:
        return "none."
    speed, static = speeds[stem(best)], speeds.get(STATIC_INT8)
    against = f", {speed / static:.2f} times as fast as dense static int8" if static else ""
    return (
        f"{best.variant} as {best.target}, {speed:.2f} times as fast as dense float32{against}, "
        f"{points_lost(100 * (result.dense_top1 - best.score))}."
    )


def training_table(result: Result) -> list[str]:
    """What became of the weights; the dense ones were trained before the run."""
    return table(
        ("variant", "epochs", "top-1 of the torch model", "weights", "multiplications", "minutes",
         "trained on"),
        [
            [
                training.variant,
                f"{len(training.epochs) or sum(result.dense_epochs)}",
                f"{100 * training.score:.2f} %",
                f"{training.parameters:,}",
                f"{training.macs:,}",
                *how(training, result.dense_trainings),
            ]
            for training in result.report.trainings
        ],
    )  # fmt: skip


def trained_on(result: Result) -> str:
    """All hardware that trained something of it."""
    named = [cycle["trained_on"] for cycle in result.dense_trainings]
    named += [training.trained_on for training in result.report.trainings]
    return "; ".join(dict.fromkeys(filter(None, named))) or "hardware that was not recorded"


def how(training: Training, dense: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Minutes and hardware, where they were written down."""
    cycles = [{"seconds": training.seconds, "trained_on": training.trained_on}] if training.epochs else dense
    hardware = dict.fromkeys(cycle["trained_on"] for cycle in cycles if cycle["trained_on"])
    seconds = sum(cycle["seconds"] for cycle in cycles)
    return f"{seconds / 60:.0f}" if cycles else "not recorded", ", ".join(hardware) or "not recorded"


def file_table(result: Result) -> list[str]:
    """A line a file: ours, then the peers', each with its speed wherever it was timed."""
    timed = [(size_px, where) for where in RUNTIME_ORDER for size_px in result.times]
    rows = [
        (f"{row.target}, {row.variant}", summary.format_name(row.target), row.bytes, row.score,
         summary.sparse_word(row), stem(row))
        for row in result.report.rows
    ]  # fmt: skip
    rows += [
        (f"{peer.file}: {peer.name}", peer.file, peer.bytes, peer.top1, "no", peer.stem)
        for peer in result.peers
    ]
    return table(
        ("target, variant", "bytes", "times smaller", "top-1", "points lost", "sparse kernels",
         *(f"{where} {size_px} px" for size_px, where in timed)),
        [
            [
                title,
                f"{size:,}",
                f"{result.dense_file(form).bytes / size:.2f}",
                f"{100 * top1:.2f} %",
                f"{100 * (result.dense_top1 - top1):.2f}",
                sparse,
                *(speed_cell(result.speeds(size_px, where).get(name)) for size_px, where in timed),
            ]
            for title, form, size, top1, sparse, name in rows
        ],
    )  # fmt: skip


RUNTIME_ORDER = ("arm64", "browser")


def speed_cell(speed: float | None) -> str:
    """For a table."""
    return f"{speed:.2f}" if speed else "–"


def speed_notes(result: Result) -> list[str]:
    """What the speeds of the table are."""
    if not result.times:
        return []
    runs = next(iter(result.times.values()))
    said = "; ".join(
        f"{where} is {run['description']} ({run['clock']}, {run['rounds']} rounds)"
        for where, run in runs.items()
    )
    return [
        f"Speeds: dense float32 of the same runtime and image size = 1; {said}. All files of a column took "
        "turns; a speed is the median of the rounds' own ratios. Larger images: the same weights, as "
        "convolutional networks take any size. The quartiles are in "
        f"[{result.slug}.json]({result.slug}.json). –: not a file of that runtime, or Core ML, which can be "
        "run here but not timed.",
        "",
    ]


def robustness_table(report: Report) -> list[str]:
    """Every variant under the strongest of each corruption, and the class that lost most."""
    found = summary.trials(report)
    if not found:
        return ["Not examined."]
    strongest = list({trial.corruption: trial for trial in found}.values())
    images = report.of(Examination)[0].robustness.images
    return [
        f"Top-1 of the torch models on {images:,} images, as they are and at the strongest of three "
        "strengths; and the class that lost most against the dense model, over all conditions.",
        "",
        *table(
            ("variant", *(condition(trial) for trial in strongest), "lost most"),
            [
                [
                    name,
                    *(f"{100 * trial.top1[name]:.1f} %" for trial in strongest),
                    lost_most(report, name),
                ]
                for name in summary.variants(report)
            ],
        ),
    ]


def lost_most(report: Report, variant: str) -> str:
    """The class that a variant lost most in, over all conditions."""
    losses = summary.classes_lost(report, variant)
    return f"{losses[0].name}: {losses[0].points:.1f} points" if losses else "–"


def condition(trial: summary.Trial) -> str:
    """A heading: "noise 0.2", "as they are"."""
    return f"{trial.corruption} {trial.strength:g}" if trial.strength is not None else "as they are"


def not_measured(result: Result) -> list[str]:
    """What the page cannot say, and why."""
    return [
        "Anything on a phone: there was none. Core ML files were run by our evaluator, not by Apple's "
        "runtime, which needs a Mac; so they have no speed.",
        *([] if result.times else ["Speed: this run was made with `--skip-speed`."]),
        "More than one seed, for want of time: differences of a few tenths of a point may be chance.",
        "What the dense model would gain from as many epochs more, taught by itself, for want of time.",
    ]


def summary_cells(result: Result) -> dict[str, str]:
    """The index's line: heading -> cell."""
    cells = {"dense top-1": f"{100 * result.dense_top1:.2f} %"}
    for form in BASELINES:
        rows = [row for row in result.near if summary.format_name(row.target) == form]
        best = min(rows, key=lambda row: row.bytes, default=None)
        cells[f"smallest {form}"] = (
            f"{best.bytes:,} bytes, {result.dense_file(form).bytes / best.bytes:.1f}x ({best.variant})"
            if best
            else "none"
        )
    size_px = max(result.times, default=0)
    for where in RUNTIME_ORDER if result.times else ():
        speeds = result.speeds(size_px, where)
        best = fastest_of(result.near, speeds)
        cells[f"fastest, {where} {size_px} px"] = (
            f"{speeds[stem(best)]:.2f}x ({best.variant})" if best else "none"
        )
    return cells


def fastest_of(rows: Sequence[Row], speeds: Mapping[str, float]) -> Row | None:
    """The fastest of those that were timed."""
    timed = (row for row in rows if stem(row) in speeds)
    return max(timed, key=lambda row: speeds[stem(row)], default=None)


def standing_alone(picture: str) -> str:
    """The report's picture with colours of its own, on white: the report's page brings them otherwise."""
    colours = {"ink": "#1b1f24", "muted": "#57606a", "line": "#d0d7de", "card": "#ffffff"}
    colours |= {f"series-{place}": colour for place, colour in enumerate(SERIES_COLOURS)}
    style = "".join(f"--{key}:{value};" for key, value in colours.items())
    return picture.replace(
        "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{style}background:#fff" ', 1
    )


def write_index(folder: Path) -> None:
    """`README.md` of the results: what was reached, and every page with the command that makes it."""
    write_text(folder / "README.md", "\n".join(index(folder)) + "\n")


def index(folder: Path) -> Iterator[str]:
    """Its lines, from the pages and facts there."""
    pages = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("*.md"))
        if path.name != "README.md"
    }
    results = {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name, text in pages.items()
        if RUN_RESULTS in text
    }
    yield from (
        "# Results",
        "",
        "Everything here was written by a script of `benchmarks/`, but for a line of the page on flowers.",
        "",
        "## Models trained, pruned and exported on real images",
        "",
        f"The smallest and the fastest file that lose at most {RECOMMENDED_DROP_POINTS:g} points of top-1, "
        "against the dense file of the same format (Core ML: float16, LiteRT: float32) and runtime. Every "
        "number is that of the file, on all held-out images.",
        "",
    )
    headings = list(dict.fromkeys(key for facts in results.values() for key in facts["summary"]))
    yield from table(
        ("model and images", *headings),
        [
            [f"[{facts['title']}]({name}.md)", *(facts["summary"].get(key, "not timed") for key in headings)]
            for name, facts in results.items()
        ],
    )
    for facts in results.values():
        yield from ("", f"### {facts['title']}", "")
        yield from (f"![size against accuracy]({picture})" for picture in facts["pictures"])
        yield from (
            "",
            f"`{facts['command']}`; trained on {facts['trained_on']}, measured on {facts['processor']}, "
            f"{facts['date']}.",
        )
    yield from ("", "Not measured:", "")
    yield from (
        f"- {line}"
        for line in dict.fromkeys(line for facts in results.values() for line in facts["not_measured"])
    )
    yield from ("", "## Everything else", "")
    yield from table(
        ("page", "made by"),
        [
            [f"[{text.splitlines()[0].removeprefix('# ')}]({name}.md)", made_by(text)]
            for name, text in pages.items()
            if name not in results
        ],
    )


def made_by(text: str) -> str:
    """The command that a page names.

    >>> made_by("Written by `python benchmarks/size_model.py --cache FOLDER`.")
    '`python benchmarks/size_model.py --cache FOLDER`'
    """
    found = COMMAND.search(text)
    return f"`{found[1]}`" if found else "–"


def stem(row: Row) -> str:
    """What the file of a row is called among the timed ones."""
    return f"{row.variant}-{row.target}"
