"""The rules of the house: who imports whom, and what is imported before it is needed."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converters.format import FORMATS

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


# What may know a format: the table of formats, the targets as data, and what runs `.tflite` files.
KNOW_FORMATS = ("converters/format.py", "converters/targets.py", "converters/runtimes/")


def naming_formats(file: Path) -> list[str]:
    """Where a file imports a format's folder, or has its name, title or suffix as a value."""
    words = {word for format in FORMATS.values() for word in (format.name, format.title, format.suffix)}
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        folders = [tuple(name.split(".")[:2]) for name in names]
        named = isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in words
        if named or any(folder == ("converters", format) for folder in folders for format in FORMATS):
            found.append(f"{file.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    return found


def test_no_format_is_named_outside_its_folder():
    own = tuple(f"converters/{name}/" for name in FORMATS)
    files = [file for package in ("edgeprune", "converters") for file in (ROOT / package).rglob("*.py")]
    others = [f for f in files if not f.relative_to(ROOT).as_posix().startswith((*own, *KNOW_FORMATS))]
    assert len(others) > 50
    assert not [place for file in others for place in naming_formats(file)]


def test_no_template_asks_for_a_format():
    templates = list((ROOT / "edgeprune" / "report" / "templates").glob("*.jinja"))
    quoted = [f"{quote}{f.title}{quote}" for f in FORMATS.values() for quote in "'\""]
    assert templates
    assert not [file.name for file in templates if any(word in file.read_text() for word in quoted)]


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
    assert "--variants.block.sparsity" in done.stdout
    assert "exit" in done.stdout
