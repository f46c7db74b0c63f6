"""The road a model takes: dense baseline, variants, files, measurements, report, budget."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgeprune import recipe as recipes
from edgeprune.data import map_style, sources
from edgeprune.errors import UserError
from edgeprune.evaluation.records import Row, Training
from edgeprune.models.branches import mergeable, merged
from edgeprune.parsing import read_json
from edgeprune.pipeline import checks, environment, files, starting_point, variants
from edgeprune.pipeline.context import RunContext, setting_of
from edgeprune.pipeline.run_folder import (
    RECIPE_FILE,
    Run,
    open_run,
    read_recipe,
    under_kept_names,
    write_json,
)
from edgeprune.pipeline.store import ADVICE, analysis_of, keep_picture, row_of, training_of
from edgeprune.pipeline.tensorboard import refuse_without_package
from edgeprune.processes import is_first, shared
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.report import alongside, records, render
from edgeprune.report.alongside import AUGMENTED
from edgeprune.report.records import Report
from edgeprune.tasks import TASKS
from edgeprune.training.loop import augmented_examples
from edgeprune.training.mosaic import mosaic

AUGMENTED_IMAGES = 16  # Training images that the report shows as training sees them.


def run(
    recipe: Recipe, progress: Progress, command: str, datasets: tuple[Any, Any] | None = None
) -> Report | None:
    """Take a recipe all the way, or go on with a run of it that was stopped.

    Everything that can be refused is refused before the first file is written. Under `accelerate launch`
    every process calls this and trains; only the first reads and writes the run folder.

    Args:
        recipe: what to do.
        progress: whom to tell.
        command: how to repeat it, for the report.
        datasets: training and held-out images from Python; None: the recipe's `data`.

    Returns:
        The report; None in all processes but the first.

    Raises:
        UserError: all mistakes found in the recipe, the data, the checkpoint or the output folder.
    """
    given = recipe
    recipe = shared(lambda: under_kept_names(given, given.output))
    checks.refuse_task(recipe)
    checks.refuse_targets(recipe)
    if recipe.tensorboard:
        refuse_without_package()
    source = sources.source(recipe.data, TASKS[recipe.task].labels)
    recipe, told = starting_point.resolved(recipe)
    if datasets is None:
        data = source.load(recipe.data, recipe.preprocessing, progress)
    else:
        map_style.refuse_labels(TASKS[recipe.task].labels)
        data = map_style.load(datasets, recipe.preprocessing, progress)
    dense, loaded = checks.untrained(recipe, len(data.classes))
    for line in (*loaded.notes, *told):
        progress.say(line)
    starts_from = merged(dense) if recipe.merge_branches else dense
    if not recipe.merge_branches and (what := mergeable(dense)):
        progress.say(f"{recipe.model} has {what}: --merge-branches merges them")
    checks.refuse_misfits(recipe, starts_from, setting_of(recipe, data))
    checks.refuse_unreadable(recipe, data, progress)

    with ExitStack() as opened:
        needed_bytes = checks.needed_bytes(recipe, dense)
        folder = shared(lambda: opened.enter_context(open_run(recipe, needed_bytes)))
        context = RunContext(recipe, data, folder, progress)
        context.store.pin_inputs(data.sha256, recipe.checkpoint, starting_point.file_of(recipe))
        baseline = variants.dense(context, dense, loaded.new_head)
        made = {"": baseline}
        for name, variant in recipe.variants.items():
            made[name] = variants.variant(context, name, baseline, made[variant.after].module)
        if not is_first():
            return None
        rows = [row for model in made.values() for row in files.rows(context, model, baseline)]
        for model in made.values():
            files.analyse(context, model, baseline)
        if not (folder.folder / AUGMENTED).exists():
            keep_picture(folder, AUGMENTED, mosaic(augmented_examples(context.setting, AUGMENTED_IMAGES)))
        write_json(folder.environment, environment.describe(data, data.held_out.size_px, command))
        return _report(recipe, folder, rows, [model.record for model in made.values()])


def rebuild_report(path: Path) -> Report:
    """Write a finished run's report again from what was measured, without training or running anything.

    Raises:
        UserError: not a run, one that is not finished, or one whose files are no longer those measured.
    """
    folder = Run(path)
    recipe = read_recipe(path)
    names = [variants.DENSE, *recipe.variants]
    wanted = [(name, target) for name in names for target in recipe.targets]
    rows = {key: row_of(folder, *key) for key in wanted}
    problems = [f"{name} on {target}" for (name, target), row in rows.items() if row is None]
    if problems or not folder.environment.exists():
        raise UserError(
            [
                f"run {path} is not finished, or its files are no longer those that were measured:",
                *(f"  {problem}" for problem in problems),
                f"finish it with: edgeprune run {path / RECIPE_FILE}",
            ]
        )
    trainings = [training_of(folder, name) for name in names]
    return _report(recipe, folder, [row for row in rows.values() if row], trainings)


def _report(recipe: Recipe, folder: Run, rows: Sequence[Row], trainings: Sequence[Training]) -> Report:
    task = TASKS[recipe.task]
    analyses = {training.variant: analysis_of(folder, training.variant, task) for training in trainings}
    again = (
        "the run folder holds nothing about its weights as they are; "
        f"edgeprune run {folder.folder / RECIPE_FILE} adds it without training again"
    )
    report = Report(
        recipe=recipes.to_data(recipe),
        environment=read_json(folder.environment, ADVICE),
        rows=tuple(rows),
        trainings=tuple(trainings),
        analyses=tuple(found for found in analyses.values() if found),
        not_examined={
            name: task.section.left_out if found else again
            for name, found in analyses.items()
            if not found or task.section.left_out
        },
        sensitivity=alongside.sensitivity(folder.folder),
        benches=alongside.benches(folder.folder, rows),
    )
    records.write(report, folder.folder)
    render.write_pages(report, folder.folder)
    return report
