"""Run every recipe by its one command and write its page in `docs/recipes/`.

    python benchmarks/recipe_pages.py --work WORK                      # all: up to two hours on two cores
    python benchmarks/recipe_pages.py --work WORK --only resnet18      # one
    python benchmarks/recipe_pages.py --work WORK --only mobilenet_v2 --given --weights FILE --data IMAGES

What is finished in `--work` is kept, with the time that it took: a killed run goes on with the next recipe.
"""

from __future__ import annotations

import argparse
import ast
import json
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

from litert_files import table

from converters.files import write_text
from edgeprune.commands.output import DONE, OVER_BUDGET
from edgeprune.pipeline import environment
from edgeprune.report import records, summary
from edgeprune.report.formatting import duration, points_lost
from edgeprune.report.records import Report
from edgeprune.report.verdict import RECOMMENDED_DROP_POINTS
from edgeprune.tasks import metric

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.py"))}
OUTPUT = ROOT / "docs" / "recipes"
# An example for the user's own images; times are scaled by images and pixels.
THEIR_IMAGES, THEIR_PX = 10_000, 128


def run(name: str, work: Path, given: list[str]) -> dict[str, float]:
    """Run a recipe to its end, unless that was done; the seconds it took, of clock and processor."""
    kept = work / f"{name}.json"
    if not kept.exists():
        began, before = time.monotonic(), processor_seconds()
        command = [sys.executable, str(RECIPES[name]), *given, "--output", str(work / name)]
        if subprocess.run(command, cwd=ROOT).returncode not in (DONE, OVER_BUDGET):
            raise SystemExit(f"{name} failed: {' '.join(command)}")
        took = {
            "seconds": time.monotonic() - began,
            "processor_seconds": processor_seconds() - before,
        }
        write_text(kept, json.dumps(took))
    return dict(json.loads(kept.read_text()))


def processor_seconds() -> float:
    """What finished child processes have used, all cores together."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def page(name: str, report: Report, took: dict[str, float], given: list[str]) -> list[str]:
    """The page of one recipe."""
    title, *told = story(RECIPES[name])
    about, score = report.environment, metric(report.rows[0].metric).heading
    return [
        f"# {title}",
        "",
        *(line for paragraph in told for line in (paragraph, "")),
        f"    {shlex.join(['python', f'recipes/{name}.py', *map(shown, given)])}",
        "",
        f"That command took {clocks(took)} on {environment.processor()}, {about['threads']} "
        f"thread(s), on {about['data']['source']}: {about['data']['train_images']:,} training images, "
        f"{about['data']['held_out_images']:,} held-out ones, "
        f"{report.recipe['image_size_px']} px. Bytes, {score} and zeros are those of the files.",
        "",
        *table(
            ("target, variant", "bytes", "times smaller", score, "points lost", "zeros", "sparse kernels"),
            file_rows(report),
        ),
        "",
        "## What to ship",
        "",
        *recommended(report),
        "",
        "## On your own images",
        "",
        f"    python recipes/{name}.py --data IMAGES --output runs/mine",
        "",
        *expectations(report),
    ]


def shown(word: str) -> str:
    """A word of a command; nobody else has this machine's folders."""
    return Path(word).name if Path(word).is_absolute() else word


def clocks(took: dict[str, float]) -> str:
    """For people: "**9 min 5 s** (7 min 1 s of processor time)"."""
    return f"**{duration(took['seconds'])}** ({duration(took['processor_seconds'])} of processor time)"


def story(script: Path) -> list[str]:
    """The title and the paragraphs of a recipe's docstring, without its commands."""
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    first, *rest = docstring.split("\n\n")
    return [first.split(",")[0], *(part for part in rest if not part.startswith("    "))]


def file_rows(report: Report) -> list[list[str]]:
    """A line a file; sizes against the dense file of the same target."""
    dense = {row.target: row.bytes for row in report.rows if row.variant == summary.DENSE}
    return [
        [f"{row.target}, {row.variant}", f"{row.bytes:,}", f"{dense[row.target] / row.bytes:.1f}",
         f"{100 * row.score:.1f} %", points(row.drop_points), f"{row.zero_fraction:.0%}",
         summary.sparse_word(row)]
        for row in sorted(report.rows, key=lambda row: row.target)
    ]  # fmt: skip


def recommended(report: Report) -> list[str]:
    """The smallest file within half a point, target by target."""
    return [
        f"- {target}: {found.variant}, {found.bytes:,} bytes, {points_lost(found.drop_points)}."
        if (found := summary.recommendation(target, report).smallest)
        else f"- {target}: no file is within {RECOMMENDED_DROP_POINTS:g} points."
        for target in dict.fromkeys(row.target for row in report.rows)
    ]


def expectations(report: Report) -> list[str]:
    """What changes with other images, and what it would cost."""
    lines, about = [], report.environment["data"]
    channels = report.recipe["variants"]["channels"]
    fewer = "macs-left 0.7" if channels["macs_left"] else "channels 0.25"
    images, size_px = about["train_images"], report.recipe["image_size_px"]
    for training in report.trainings:
        if training.epochs:
            epoch = training.seconds / len(training.epochs)
            theirs = epoch * THEIR_IMAGES / images * (THEIR_PX / size_px) ** 2
            lines.append(
                f"- {training.variant}: {len(training.epochs)} epochs of {epoch:.1f} s here. An epoch of "
                f"{THEIR_IMAGES:,} images at {THEIR_PX} px would take some {duration(theirs)} there "
                "(scaled by images and pixels, not measured)."
            )
    return [
        *lines,
        f"- {no_photographs(report)}{about['held_out_images']} held-out images are few: expect other losses "
        "on yours, and read the report's own numbers.",
        "- Where too much is lost: train longer (`--variants.block80.fit.epochs`), ask for fewer zeros "
        f"(`--variants.block80.sparsity 0.7`), or leave more channels (`--variants.channels.{fewer}`).",
        "- A trained model of your own spares the first training: `--checkpoint dense.pt`.",
    ]


def no_photographs(report: Report) -> str:
    """What the embedded images are not."""
    return "These are no photographs, and " if report.recipe.get("data") is None else ""


def points(value: float) -> str:
    """For people: "0.4"; never "-0.0"."""
    return f"{round(value, 1) + 0.0:.1f}"


def index(titles: dict[str, str]) -> list[str]:
    """The page that names the others."""
    return [
        "# Recipes",
        "",
        "One script a model, each with a page that a run of it wrote (`benchmarks/recipe_pages.py`).",
        "",
        *(f"- [{title}]({name}.md)" for name, title in titles.items()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument(
        "--given", nargs=argparse.REMAINDER, default=[], help="what the command is given besides; comes last"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        took = run(name, options.work, options.given)
        lines = page(name, records.read(options.work / name), took, options.given)
        write_text(options.output / f"{name}.md", "\n".join(lines) + "\n")
        there = {path.stem for path in options.output.glob("*.md")}
        titles = {name: story(path)[0] for name, path in RECIPES.items() if name in there}
        write_text(options.output / "README.md", "\n".join(index(titles)) + "\n")


if __name__ == "__main__":
    main()
