"""Builds the documentation site: `make site`, or `python docs/site.py`; any broken link fails it.

The repository's own pages are the source, at the places they have here, so that every link between them
works on the forge and on the site alike. Generated beside them: a page with every command, from the parser
itself; a page for each public package, whose docstrings mkdocstrings renders; `llms.txt`, a list of all pages
for language models.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "recipes/README.md",
    "sample_apps/README.md", "sample_apps/android/README.md", "sample_apps/ios/README.md",
    "sample_apps/web/README.md",
)  # fmt: skip
COPIED = (".md", ".png", ".svg", ".json", ".ipynb")
# Public names that lie in modules rather than in a package's __all__.
SETTINGS = {
    "edgeprune.cli": ["run_recipe"],
    "edgeprune.recipe": ["Recipe", "Variant"],
    "edgeprune.training.config": ["TrainConfig", "Augment"],
    "edgeprune.budget": ["Budget", "Limits"],
    "converters.facts": ["Converted", "LayerFacts", "Normalization"],
}
PACKAGES = ("edgeprune.pruning", "converters.coreml", "converters.litert", "converters.coreai")


def main() -> int:
    """Gather the pages and have Zensical build them."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="default: build/docs")
    folder = parser.parse_args().output.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    gather(folder)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    plain = {**os.environ, "NO_COLOR": "1"}
    status = subprocess.run(build, cwd=folder, env=plain, check=False).returncode
    if status == 0:
        fetch_nothing(folder / "site")
        print(f"Open {folder / 'site' / 'index.html'}")
    return status


def gather(folder: Path) -> None:
    """Everything that the generator reads, in a folder of its own."""
    source = folder / "source"
    for name in (*PAGES, *documents()):
        target = source / ("index.md" if name == "README.md" else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            target.write_text(page(ROOT / name), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / name, target)
    reference = source / "docs" / "reference"
    reference.mkdir()
    for name, text in {**command_pages(), **python_pages()}.items():
        (reference / name).write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "docs" / "site.css", source / "site.css")
    settings = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    # Relative paths there would depend on where the output lies.
    (folder / "zensical.toml").write_text(settings.replace("ROOT", str(ROOT)), encoding="utf-8")
    (source / "llms.txt").write_text(llms(source), encoding="utf-8")


def fetch_nothing(site: Path) -> None:
    """Remove scripts of other hosts: the theme has one, for searching from disk in browsers that need it."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r'<script src="https?://[^"]*"[^>]*></script>', "", text), encoding="utf-8")


def documents() -> list[str]:
    """What lies in docs/, as paths from the root."""
    found = sorted(path for path in (ROOT / "docs").rglob("*") if path.suffix in COPIED)
    return [path.relative_to(ROOT).as_posix() for path in found]


def page(path: Path) -> str:
    """A page as the site has it: links to the first page lead to its name there."""
    text = path.read_text(encoding="utf-8")
    if path.parent == ROOT:
        return text
    up = "../" * len(path.relative_to(ROOT).parents[:-1])
    return text.replace(f"]({up}README.md", f"]({up}index.md")


def command_pages() -> dict[str, str]:
    """A page with all commands, from the help that each of them prints."""
    sys.path.insert(0, str(ROOT))
    os.environ["COLUMNS"] = "88"  # How wide argparse writes its help.
    from edgeprune.commands import COMMANDS
    from edgeprune.commands.parser import build

    whole, parsers = build(list(COMMANDS))
    lines = ["# Commands", "", "What `edgeprune COMMAND --help` prints.", "", *_help(whole.format_help())]
    for name, parser in zip(COMMANDS, parsers, strict=True):
        lines += ["", f"## edgeprune {name}", "", *_help(parser.format_help())]
    return {"commands.md": "\n".join(lines) + "\n"}


def _help(text: str) -> list[str]:
    return ["```text", *text.rstrip().splitlines(), "```"]


def python_pages() -> dict[str, str]:
    """A page for each public package, and one for what a recipe is made of."""
    pages = {f"{package}.md": _python_page(f"`{package}`", names(package)) for package in PACKAGES}
    settings = [f"{module}.{name}" for module, found in SETTINGS.items() for name in found]
    return {
        **pages,
        "recipe.md": _python_page("A recipe's settings, and what a conversion returns", settings),
    }


def _python_page(title: str, paths: list[str]) -> str:
    return "\n".join([f"# {title}", "", *(f"::: {path}\n" for path in paths)])


def names(package: str) -> list[str]:
    """Full paths of the names in a package's `__all__`, without importing it: extras may be missing."""
    file = ROOT.joinpath(*package.split("."), "__init__.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    places = {alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    (public,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    return [places[name] for name in sorted(public, key=str.lower)]


def llms(source: Path) -> str:
    """All pages with their titles, as https://llmstxt.org describes the file."""
    first = (source / "index.md").read_text(encoding="utf-8").split("\n\n")
    summary = " ".join(first[1].split())
    lines = ["# edgeprune", "", f"> {summary}", "", "## Pages", ""]
    for path in sorted(source.rglob("*.md")):
        title = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        place = path.relative_to(source).with_suffix(".html").as_posix().replace("README.html", "index.html")
        lines.append(f"- [{title.group(1) if title else path.stem}]({place})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
