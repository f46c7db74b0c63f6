"""The rules of the house: who imports whom, and what is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from converters.format import FORMATS

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"converters": {"edgeprune", "recipes"}, "edgeprune": {"recipes"}}
# What each room of edgeprune/ may import besides itself; what only type checkers read does not count.
FOUNDATION = {"allocator", "converters", "errors", "parsing", "processes", "progress"}
MAY_IMPORT = {
    "allocator": set(),
    "errors": {"converters"},
    "parsing": {"converters"},
    "processes": set(),
    "progress": set(),
    "tasks.task": set(),
    "data": FOUNDATION,
    "models": FOUNDATION | {"data"},
    "pruning": FOUNDATION | {"data", "models"},
    "training": FOUNDATION | {"data", "models", "pruning", "tasks.task"},
    "evaluation": FOUNDATION | {"data", "models", "pruning", "training", "tasks.task"},
    "tasks": FOUNDATION | {"data", "models", "pruning", "training", "evaluation", "tasks.task"},
    "budget": FOUNDATION | {"tasks"},
    "recipe": FOUNDATION | {"budget", "data", "models", "tasks", "tasks.task", "training"},
    "report": FOUNDATION | {"budget", "evaluation", "tasks", "tasks.task"},
}
EVERYTHING_BELOW = FOUNDATION | set(MAY_IMPORT)
MAY_IMPORT["pipeline"] = EVERYTHING_BELOW
MAY_IMPORT["commands"] = EVERYTHING_BELOW | {"pipeline"}
MAY_IMPORT["cli"] = {"commands", "errors", "processes", "recipe"}
MAY_IMPORT["__main__"] = {"cli"}
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


def modules(package: str) -> dict[str, Path]:
    """The files of a package by their dotted names."""
    found = {}
    for file in (ROOT / package).rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules("edgeprune") | modules("converters")


def imported_modules(tree: ast.AST) -> set[str]:
    """Modules of this project that a file imports when it runs, wherever in it."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        found |= imported_modules(node)
    return {name for name in found if name in MODULES}


def room(module: str) -> str:
    """The room of a module; the protocol of tasks is one of its own, for those below the tasks."""
    top, *rest = module.split(".")
    if top == "converters" or not rest:
        return top
    return ".".join(rest[:2]) if ".".join(rest[:2]) in MAY_IMPORT else rest[0]


GRAPH = {
    name: imported_modules(ast.parse(file.read_text(encoding="utf-8"))) for name, file in MODULES.items()
}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("edgeprune.")))
def test_rooms_import_only_what_they_may(module):
    allowed = MAY_IMPORT[room(module)] | {room(module), "edgeprune"}
    assert {name for name in GRAPH[module] if room(name) not in allowed} == set()


def test_no_module_imports_itself_by_way_of_others():
    """What runs when a module is imported: a name of a package is one of its own modules' here."""
    remaining = {
        name: {other for other in GRAPH[name] if other != name and room(other) != room(name)}
        for name in GRAPH
    }
    rooms: dict[str, set[str]] = {}
    for name, others in remaining.items():
        rooms.setdefault(room(name), set()).update(map(room, others))
    while free := [name for name, others in rooms.items() if not others & set(rooms)]:
        for name in free:
            del rooms[name]
    assert rooms == {}, "these rooms import each other in a circle"


def texts(file: Path) -> set[str]:
    """The text constants of a file that are not documentation."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    }


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not name.startswith("edgeprune.tasks")))
def test_no_task_is_named_outside_its_file(module):
    from edgeprune.tasks import TASKS

    assert texts(MODULES[module]) & set(TASKS) == set()


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


def test_help_lists_the_commands():
    command = [sys.executable, "-m", "edgeprune.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "check" in done.stdout


ALL_HELP = """
import contextlib, pathlib, runpy, sys
for script in map(str, sorted(pathlib.Path("recipes").glob("*.py"))):
    sys.argv = [script, "--help"]
    print("script", script)
    with contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
"""


def test_every_recipe_script_explains_itself():
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=True, cwd=ROOT
    )
    helps = dict(part.split("\n", 1) for part in done.stdout.split("script ")[1:] if "recipes/" in part)
    assert set(helps) == {f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")}
    for told in helps.values():
        assert "--variants.block80.sparsity" in told
        assert "exit" in told
