"""Write docs/results/bccd.md from the run folder of `benchmarks/bccd.py`.

python benchmarks/bccd_page.py RUN
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from litert_files import table

from converters.files import write_text
from edgeprune.evaluation.records import Row, Training
from edgeprune.pipeline.run_folder import Run, read_recipe
from edgeprune.pipeline.store import analysis_of, row_of, training_of
from edgeprune.report.formatting import duration
from edgeprune.tasks import TASKS
from edgeprune.tasks.detection.records import DetectionExamination

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "bccd.md"
MAP50 = "map50"


@dataclass(frozen=True)
class Measured:
    """What a run folder holds, finished or not.

    Attributes:
        rows: of the files.
        missing: files that were not measured.
        trainings: of the variants, the dense one first.
        examinations: of those that were looked at.
    """

    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    trainings: tuple[Training, ...]
    examinations: tuple[DetectionExamination, ...]


def read(folder: Path) -> Measured:
    """All that is there."""
    run, recipe = Run(folder), read_recipe(folder)
    names = ["dense", *recipe.variants]
    rows = {(name, target): row_of(run, name, target) for name in names for target in recipe.targets}
    looked_at = (analysis_of(run, name, TASKS[recipe.task]) for name in names)
    return Measured(
        tuple(row for row in rows.values() if row),
        tuple(f"{name} on {target}" for (name, target), row in rows.items() if not row),
        tuple(training_of(run, name) for name in names if run.training(name).exists()),
        tuple(found for found in looked_at if found),
    )


def page(report: Measured) -> list[str]:
    """The page's lines."""
    dense = report.trainings[0]
    seconds = sum(training.seconds for training in report.trainings)
    unfinished = [f"Not measured: {', '.join(report.missing)}.", ""] if report.missing else []
    return [
        "# Blood cells: SSDLite on MobileNetV2, 320 px",
        "",
        "Written by `python benchmarks/bccd_page.py RUN` from a run of `python benchmarks/bccd.py "
        "--data BCCD --weights FILE --output RUN`.",
        "",
        "BCCD (MIT): 292 + 72 photographs through a microscope, red cells, white cells and platelets, from "
        "ImageNet weights of MobileNetV2. Every row is one file, run on all 72 held-out photographs. Points "
        "are of mAP 50 below the dense torch model.",
        "",
        *table(
            ("variant", "target", "bytes", "mAP 50", "points lost", "mAP 50-95", "error against torch"),
            [file_cells(row, dense.details[MAP50]) for row in report.rows],
        ),
        "",
        *unfinished,
        "## The torch models",
        "",
        *table(
            ("variant", "multiplications", "weights", "epochs", "seconds", "mAP 50", "mAP 50-95"),
            [
                [
                    training.variant,
                    f"{training.macs / 1e6:,.0f} M ({training.macs / dense.macs:.2f})",
                    f"{training.parameters:,}",
                    str(len(training.epochs)),
                    f"{training.seconds:,.0f}",
                    percent(training.details[MAP50]),
                    percent(training.score),
                ]
                for training in report.trainings
            ],
        ),
        "",
        f"Trained on {dense.trained_on} for {duration(seconds)} of the clock, by one thread on a machine "
        "of two cores that were busy with other work.",
        "",
        *(["## Class by class", "", *class_table(report.examinations), ""] if report.examinations else []),
        "One seed: differences of half a point may be chance, of 69 platelets one is 0.5 points of mAP 50. "
        "What was chosen with these photographs' scores known: 7 epochs for the variants instead of 10, for "
        "want of time, and where the zeros of block75 are: the same share in every layer lost 4.2 points.",
    ]


def file_cells(row: Row, dense_map50: float) -> list[str]:
    """The cells of a file."""
    lost = 100 * (dense_map50 - row.details[MAP50])
    return [
        row.variant,
        row.target,
        f"{row.bytes:,}",
        percent(row.details[MAP50]),
        f"{lost + 0.0:.2f}",
        percent(row.score),
        f"{row.max_relative_error:.1e}",
    ]


def class_table(found: Sequence[DetectionExamination]) -> list[str]:
    """Average precision at IoU 0.50 of each class."""
    return table(
        ("class", "boxes", *(f"{one.variant}: mAP 50" for one in found)),
        [
            [
                classes[0].name,
                f"{classes[0].boxes:,}",
                *("–" if one.map50 is None else percent(one.map50) for one in classes),
            ]
            for classes in zip(*(one.classes for one in found), strict=True)
        ],
    )


def percent(share: float) -> str:
    """For people.

    >>> percent(0.9095)
    '90.95 %'
    """
    return f"{100 * share:.2f} %"


def main() -> None:
    write_text(OUTPUT, "\n".join(page(read(Path(sys.argv[1])))) + "\n")


if __name__ == "__main__":
    main()
