"""The documents: every command in them parses, every Python block runs or says why not, the site builds."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from edgeprune import recipe
from edgeprune.commands.parser import parse
from edgeprune.commands.recipes import find
from edgeprune.recipe import Variant
from edgeprune.training.config import TrainConfig
from tests.support import chromium

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md",
        ROOT / "recipes" / "README.md", *(ROOT / "sample_apps").glob("README.md"),
        *(ROOT / "sample_apps").glob("*/README.md"),
    )
)  # fmt: skip
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}\S.*\n|^\n(?=    ))+", re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: \w[^>]+-->\s*$")


@dataclass(frozen=True)
class Block:
    """A block of code: where, in which language if it says so, its text, and whether a comment excuses it."""

    page: str
    language: str
    text: str
    excused: bool

    @property
    def is_python(self) -> bool:
        if self.language:
            return self.language == "python"
        try:
            return bool(ast.parse(self.text).body)
        except SyntaxError:
            return False


def blocks(page: str) -> list[Block]:
    """All blocks of a page, fenced and indented."""
    content = (ROOT / page).read_text(encoding="utf-8") + "\n"
    found = [
        (match.start(), Block(page, match[1], match[2], bool(NOT_RUN.search(content[: match.start()]))))
        for match in FENCED.finditer(content)
    ]
    rest = FENCED.sub(lambda match: "\n" * match[0].count("\n"), content)
    found += [
        (
            match.start(),
            Block(page, "", textwrap.dedent(match[0]), bool(NOT_RUN.search(rest[: match.start()]))),
        )
        for match in INDENTED.finditer(rest)
        if not rest[: match.start()].endswith("-\n")
    ]
    return [block for _, block in sorted(found, key=lambda one: one[0])]


def commands(page: str) -> list[str]:
    """Lines of blocks, and code within sentences, that begin with a program of ours.

    A sentence may speak of `edgeprune bench --runtime android` without naming a file: one is added.
    """
    content = (ROOT / page).read_text(encoding="utf-8")
    lines = "\n".join(block.text for block in blocks(page)).replace("\\\n", " ").splitlines()
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCED.sub("", content))]
    spans = [f"{span} FILE" if re.match(r"edgeprune bench --", span) else span for span in spans]
    found = [line.strip() for line in (*lines, *spans)]
    return [line for line in found if re.match(r"(edgeprune|python recipes/\w+\.py|make) [a-z]?", line)]


def arguments_of(line: str) -> list[str]:
    """The words of a command; what shells do with the rest of a line is left out."""
    return shlex.split(line.split(" | ")[0], comments=True)


def make_targets() -> set[str]:
    content = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = " ".join(re.findall(r"^([^\s#:=][^:=]*):(?!=)", content, re.MULTILINE)).split()
    return {name.replace("$(VENV)", ".venv") for name in names}


def check_recipe(name: str, fields: list[str]) -> None:
    """The options of a recipe, as its own command line takes them."""
    start, _ = find(Path(name))
    assert recipe.from_command_line(start, "", fields).model


def check(line: str) -> None:
    words = arguments_of(line)
    if words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= make_targets()
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        check_recipe(Path(words[1]).stem, words[2:])
    elif "--help" in words:
        with pytest.raises(SystemExit) as ended:
            parse(words[1:])
        assert ended.value.code == 0
    else:
        options = parse(words[1:])
        if words[1] == "run" and not words[2].endswith(".toml"):
            check_recipe(words[2], options.options)


def complete(line: str) -> bool:
    """Whether a line is a command to type: no mere name in a sentence, none with parts left out."""
    words = arguments_of(line)
    return len(words) > 1 and "..." not in line and (len(words) > 2 or words[0] == "make")


COMMANDS = sorted({(page, line) for page in PAGES for line in commands(page) if complete(line)})
PYTHON = [block for page in PAGES for block in blocks(page) if block.is_python]


def test_the_documents_have_commands_and_python() -> None:
    assert len(COMMANDS) > 60
    assert len(PYTHON) > 8
    assert sum(not block.excused for block in PYTHON) >= 6


@pytest.mark.parametrize("page", sorted({page for page, _ in COMMANDS}))
def test_every_command_parses(page: str) -> None:
    faults = []
    for where, line in COMMANDS:
        if where == page:
            try:
                check(line)
            except (Exception, SystemExit) as error:  # All of a page at once.
                faults.append(f"{line}: {error!r}")
    assert faults == []


def at_hand() -> dict[str, object]:
    """What a reader has before the first block: a model of their own, images, and a recipe's imports."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 1),
        nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    images = torch.rand(8, 3, 32, 32)
    return {
        "model": model.eval(), "example": images[:1], "images": images.numpy(), "batches": [images],
        "labelled_batches": [(images, torch.arange(8))], "Variant": Variant, "TrainConfig": TrainConfig,
    }  # fmt: skip


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON if not block.excused}))
def test_every_python_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one session for each page, as a reader has it; only what is excused by its comment is left out."""
    monkeypatch.chdir(tmp_path)
    names = at_hand()
    for block in PYTHON:
        # What the guide saves is loaded again in test_guide.py.
        if block.page == page and not block.excused and "torch.save(" not in block.text:
            exec(compile(block.text, page, "exec"), names)


def test_the_workflow_publishes_what_make_site_builds() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "ci" / "site-workflow.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["build"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make site"]
    assert steps[-1]["with"]["path"] == "build/docs/site"
    assert "site" in make_targets()


needs_zensical = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None, reason="the docs extra is not installed: make site"
)


def build(output: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs" / "site.py"), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "site"


@needs_zensical
def test_the_site_has_every_page_and_command_and_public_name(site: Path) -> None:
    from edgeprune import pruning
    from edgeprune.commands import COMMANDS as ALL

    for page in PAGES:
        if page not in ("README.md", "docs/README.md"):
            built = site / page.replace("README.md", "index.md").replace(".md", ".html")
            assert built.is_file(), page
    reference = (site / "docs" / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f'id="edgeprune-{name}"' in reference for name in ALL)
    python = (site / "docs" / "reference" / "edgeprune.pruning.html").read_text(encoding="utf-8")
    assert [name for name in pruning.__all__ if not re.search(rf'id="[\w.]+\.{name}"', python)] == []
    assert "docs/guide.html" in (site / "llms.txt").read_text(encoding="utf-8")


@needs_zensical
def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r'(?:src|srcset)="(https?:)?//|<link[^>]+href="(https?:)?//(?!localhost)')
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\"?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@needs_zensical
@pytest.mark.skipif(chromium.find() is None, reason="Chromium is not installed")
def test_pages_fit_a_phone_and_a_desktop_and_complain_of_nothing(site: Path, tmp_path: Path) -> None:
    pages = ("index", "docs/guide", "docs/chips", "docs/reference/commands", "docs/reference/recipe")
    program = chromium.find()
    assert program
    with chromium.started(program, tmp_path) as tab:
        for page, width_px in itertools.product(pages, (1280, 390)):
            tab.open(site / f"{page}.html", width_px, "light")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width_px, page
            assert tab.complaints() == [], page
            assert all(url.startswith(("file:", "data:", "blob:")) for url in tab.requests()), page


@needs_zensical
@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", ".runtimes", "build", "runs", "data", "node_modules", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=left_out)
    page = copy / "docs" / "glossary.md"
    page.write_text(page.read_text(encoding="utf-8") + "\n[gone](gone.md)\n", encoding="utf-8")
    done = build(tmp_path / "site", copy)
    assert done.returncode != 0
    assert "page does not exist" in done.stdout + done.stderr
