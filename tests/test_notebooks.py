"""The notebooks run from top to bottom, in the time that CI has for them; outputs are not kept."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
# What they claim; on most machines it is two minutes.
SECONDS = 15 * 60


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the docs extra is not installed")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    links = re.findall(
        r"\]\(([^)#]+)", "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    )
    assert links
    assert [link for link in links if not (path.parent / link).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last cells assert what they claim. Processor time counts: CI runs other tests beside it."""
    nbformat = pytest.importorskip("nbformat", reason="the docs extra is not installed")
    client = pytest.importorskip("nbclient", reason="the docs extra is not installed").NotebookClient
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(path.parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    book = nbformat.read(path, as_version=4)
    before, begun = os.times(), time.monotonic()
    client(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    after = os.times()
    used = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    told = "\n".join(out.text for cell in book.cells for out in cell.get("outputs", []) if "text" in out)
    print(f"{path.stem}: {used:.0f} s of processor time, {time.monotonic() - begun:.0f} s\n{told}")  # noqa: T201
    assert used < SECONDS
