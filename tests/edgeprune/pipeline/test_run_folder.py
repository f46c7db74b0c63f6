"""Run folders that two processes want at once, that were left half made, or that hold damaged files."""

import shutil
from contextlib import ExitStack

import pytest

from edgeprune.errors import UserError
from edgeprune.pipeline.run_folder import LOCK_FILE, RECIPE_FILE, SUBFOLDERS, Run, open_run
from edgeprune.pipeline.store import Store, inputs_of
from edgeprune.recipe import Recipe


@pytest.fixture
def recipe(tmp_path):
    return Recipe("mobilenet_v3_small", output=tmp_path / "run")


def test_who_comes_too_late_leaves_the_other_s_new_run_alone(recipe, monkeypatch):
    real = shutil.disk_usage
    with ExitStack() as first:

        def quicker(path):  # Another process opens the run just after this one found no folder.
            monkeypatch.setattr(shutil, "disk_usage", real)
            first.enter_context(open_run(recipe, 0))
            return real(path)

        monkeypatch.setattr(shutil, "disk_usage", quicker)
        with pytest.raises(UserError, match="another process is at work"), open_run(recipe, 0):
            pass
        assert (recipe.output / RECIPE_FILE).is_file()
        assert all((recipe.output / name).is_dir() for name in SUBFOLDERS)


def test_another_recipe_s_run_is_not_taken_over_in_that_moment(recipe, tmp_path, monkeypatch):
    real = shutil.disk_usage

    def quicker(path):
        monkeypatch.setattr(shutil, "disk_usage", real)
        with open_run(Recipe("mobilenet_v2", output=recipe.output), 0) as run:
            run.partial("dense").write_bytes(b"x")
        return real(path)

    monkeypatch.setattr(shutil, "disk_usage", quicker)
    with pytest.raises(UserError, match="holds a run of another recipe"), open_run(recipe, 0):
        pass


def test_killed_before_the_recipe_was_written_it_is_a_new_run(recipe):
    for name in SUBFOLDERS:
        (recipe.output / name).mkdir(parents=True)
    for name in (LOCK_FILE, f".{RECIPE_FILE}.new.tmp"):
        (recipe.output / name).write_text("")
    with open_run(recipe, 0) as run:
        assert sorted(entry.name for entry in run.folder.iterdir() if entry.is_file()) == [
            ".lock",
            RECIPE_FILE,
        ]


def test_a_damaged_file_of_a_run_is_one_message(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "variants").mkdir()
    for path, look in (
        (run.partial("dense"), Store(run).partial),
        (run.weights("dense"), Store(run).variant),
        (run.inputs, lambda _: inputs_of(run)),
    ):
        path.write_text("[1]")
        with pytest.raises(UserError, match="delete it, and") as caught:
            look("dense")
        assert str(caught.value).startswith(str(path))
