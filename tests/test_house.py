"""The rules of the house: who imports whom, and what is imported before it is needed."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"converters": {"edgeprune", "recipes"}, "edgeprune": {"recipes"}}
HEAVY = (
    "torch",
    "torchvision",
    "coremltools",
    "litert_torch",
    "tensorflow",
    "numpy",
    "matplotlib",
    "sklearn",
    "rich",
)


def imports(file: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(file): imports(file) & FORBIDDEN[package] for file in files}
    assert not {file: names for file, names in wrong.items() if names}


def test_help_imports_nothing_heavy():
    code = f"import sys, edgeprune.cli, converters; print([m for m in {HEAVY} if m in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert told.strip() == "[]"


def test_help_answers_at_once():
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        command = [sys.executable, "-m", "edgeprune.cli", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        seconds.append(time.monotonic() - began)
    assert "check" in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("script", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_script_explains_itself(script):
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "--variants.block80.sparsity" in done.stdout
    assert "exit" in done.stdout
