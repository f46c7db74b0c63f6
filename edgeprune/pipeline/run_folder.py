"""The run folder: each file in it is whole or not there, so that a killed run goes on where it stopped.

RUN/
  recipe.toml            as resolved; `edgeprune run RUN/recipe.toml` repeats it
  inputs.json            digests of the images and the checkpoint it was made from
  variants/NAME.safetensors, NAME.json     weights, and how they came to be
  variants/NAME.partial                    state after the last epoch, while NAME trains
  files/NAME-TARGET.tflite, .mlpackage     what ships
  rows/NAME-TARGET.json                    what was measured on it
  examinations/NAME.json                   what NAME gets wrong, and under image corruptions
  thumbnails/PLACE.jpg                     the held-out images that an examination shows
  sensitivity.json, bench*.json            shown in the report where the user put them
  tensorboard/NAME/      a training's numbers by epoch, where the recipe asks for them
  environment.json       versions, machine and data of the measurements
  report.json, report.md, report.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.files import TEMPORARY, explained, remove, write_text
from edgeprune import recipe as recipes
from edgeprune.errors import UserError
from edgeprune.recipe import Recipe

RECIPE_FILE = "recipe.toml"
INPUTS_FILE = "inputs.json"
ENVIRONMENT_FILE = "environment.json"
LOCK_FILE = ".lock"
SUBFOLDERS = ("variants", "files", "rows", "examinations", "thumbnails")
# What may differ between a run and its continuation: nothing that was trained or measured depends on it.
FREE_FIELDS = ("budget", "targets", "output", "check_images", "save_minutes", "tensorboard")


class Run:
    """An opened run folder, locked against a second process while `open_run` holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def inputs(self) -> Path:
        """Digests of the images and the checkpoint."""
        return self.folder / INPUTS_FILE

    @property
    def environment(self) -> Path:
        """Where the files were made and measured."""
        return self.folder / ENVIRONMENT_FILE

    def weights(self, variant: str) -> Path:
        """Of a finished variant."""
        return self.folder / "variants" / f"{variant}.safetensors"

    def training(self, variant: str) -> Path:
        """How a finished variant came to be."""
        return self.folder / "variants" / f"{variant}.json"

    def partial(self, variant: str) -> Path:
        """State of a variant in training."""
        return self.folder / "variants" / f"{variant}.partial"

    def file(self, variant: str, target: str, suffix: str) -> Path:
        """A deployable file."""
        return self.folder / "files" / f"{variant}-{target}{suffix}"

    def row(self, variant: str, target: str) -> Path:
        """What was measured on a file."""
        return self.folder / "rows" / f"{variant}-{target}.json"

    def examination(self, variant: str) -> Path:
        """What a finished variant gets wrong."""
        return self.folder / "examinations" / f"{variant}.json"


@contextmanager
def open_run(recipe: Recipe, needed_bytes: int) -> Iterator[Run]:
    """Open `recipe.output` as the folder of this recipe's run: new, or to go on with.

    Args:
        recipe: the resolved recipe.
        needed_bytes: free disk space that a new run asks for.

    Raises:
        UserError: the folder holds something else or another recipe's run, another process is at work in
            it, or it cannot be written. A folder made here in which nothing was finished is removed.
    """
    folder = recipe.output
    going_on = _check(folder, recipe)
    # The folders that making this one brings about, outermost last: removed again if nothing comes of it.
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with explained(folder), _undone_on_failure(created):
        if not going_on:
            _refuse_full_disk(folder, needed_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            going_on = _check(folder, recipe)  # Again: another process may have been quicker.
            try:
                for name in SUBFOLDERS:
                    (folder / name).mkdir(exist_ok=True)
                for leftover in folder.rglob(TEMPORARY):
                    remove(leftover)
                write_text(folder / RECIPE_FILE, recipes.to_toml(recipe))
                yield Run(folder)
            except BaseException:
                if not going_on:
                    _remove_if_nothing_done(folder)
                raise


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe of a run folder, its variants under the names that their files have.

    Raises:
        UserError: not a run folder.
    """
    return under_kept_names(recipes.read(folder / RECIPE_FILE), folder)


def under_kept_names(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with its variants under the names that their files have in a run folder.

    Runs of before version 0.2 have the percentage of zeros behind a name: "block80" is what their recipe
    calls "block".
    """
    run = Run(folder)
    variants = {}
    for name, variant in recipe.variants.items():
        numbered = f"{name}{round(100 * variant.sparsity)}"
        old = (
            variant.sparsity > 0
            and numbered not in recipe.variants
            and not run.training(name).exists()
            and run.training(numbered).exists()
        )
        variants[numbered if old else name] = variant
    return replace(recipe, variants=variants)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def _check(folder: Path, recipe: Recipe) -> bool:
    """Return whether `folder` holds a run of this recipe to go on with."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {folder} is a file: choose another --output")
    if not folder.exists() or all(map(_says_nothing, folder.iterdir())):
        return False
    if not (folder / RECIPE_FILE).is_file():
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:3])
        raise UserError(f"output folder {folder} holds something else ({names}): choose a new or empty one")
    before, now = (recipes.to_data(_without_free_fields(r)) for r in (read_recipe(folder), recipe))
    changed = _differences(before, now)
    if changed:
        raise UserError(
            [
                f"output folder {folder} holds a run of another recipe:",
                *(f"  {key}: {old} there, {new} now" for key, old, new in changed),
                "choose another --output, or delete that folder to start again",
            ]
        )
    return True


def _says_nothing(entry: Path) -> bool:
    """Whether a killed process leaves this in a folder before it has written its recipe there."""
    if entry.name in SUBFOLDERS:
        return entry.is_dir() and not any(entry.iterdir())
    return entry.name == LOCK_FILE or entry.match(TEMPORARY)


def _without_free_fields(recipe: Recipe) -> Recipe:
    default = Recipe(model=recipe.model)
    return replace(recipe, **{name: getattr(default, name) for name in FREE_FIELDS})


def _differences(before: Any, now: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            difference
            for key in keys
            for difference in _differences(before.get(key), now.get(key), f"{place}.{key}".lstrip("."))
        ]
    return [] if before == now else [(place, before, now)]


def _refuse_full_disk(folder: Path, needed_bytes: int) -> None:
    import shutil

    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"output folder {folder}: the run needs about {needed_bytes / 1e6:.0f} MB, the disk has "
            f"{free_bytes / 1e6:.0f} MB free; free some space, or choose another --output"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has no flock: a second process is then the user's own watch.
        yield
        return
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is at work in {folder}: wait for it, or choose another --output"
            ) from None
        yield


def _remove_if_nothing_done(folder: Path) -> None:
    """Undo a new run in which not one epoch or file was finished; only who holds the lock may."""
    if any(entry.is_file() for name in SUBFOLDERS for entry in (folder / name).rglob("*")):
        return
    for name in SUBFOLDERS:
        remove(folder / name)
    for name in (RECIPE_FILE, INPUTS_FILE, LOCK_FILE):
        remove(folder / name)


@contextmanager
def _undone_on_failure(created: list[Path]) -> Iterator[None]:
    """Remove the folders that were made, innermost first, where nothing is in them."""
    try:
        yield
    except BaseException:
        for made in created:
            with suppress(OSError):
                made.rmdir()
        raise
