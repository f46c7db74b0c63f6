"""What goes with a release: the wheel and what is in it, and the files that other programs read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import edgeprune
from edgeprune.commands.parser import parse

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    assert str(citation["version"]) == edgeprune.__version__
    assert f'license = "{citation["license"]}"' in text("pyproject.toml")


def test_forms_for_issues_have_what_the_forge_asks_for() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        assert len({part["id"] for part in form["body"]}) == len(form["body"])
    assert "edgeprune doctor" in text(".github/ISSUE_TEMPLATE/bug.yml")


def test_the_action_and_the_hook_run_a_command_that_parses() -> None:
    action = yaml.safe_load(text("action.yml"))
    assert action["runs"]["using"] == "composite"
    assert all(("uses" in step) or step["shell"] == "bash" for step in action["runs"]["steps"])
    check = action["runs"]["steps"][-1]
    given = {"paths": "a.tflite b.tflite", "budget": "a b.toml", "only": "bytes", "junit": "x.xml"}
    assert set(given) <= set(action["inputs"])
    environment = {key: given[re.sub(r"\W|inputs", "", value)] for key, value in check["env"].items()}
    script = check["run"].replace("edgeprune check", "printf '%s\\n' edgeprune check")
    said = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    options = parse(said.stdout.splitlines()[1:])
    assert (list(map(str, options.paths)), str(options.budget)) == (["a.tflite", "b.tflite"], "a b.toml")
    assert (options.only, str(options.junit)) == (["bytes"], "x.xml")
    (hook,) = yaml.safe_load(text(".pre-commit-hooks.yaml"))
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert parse([*shlex.split(hook["entry"])[1:], "runs/mine"]).execute


def test_the_dockerfile_has_only_known_instructions() -> None:
    lines = re.sub(r"\\\n", " ", text("Dockerfile")).splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert set(words) <= INSTRUCTIONS
    assert words[0] == "FROM"
    assert 'ENTRYPOINT ["edgeprune"]' in lines


@pytest.mark.slow
def test_wheel_and_sdist_have_what_an_installation_needs(tmp_path: Path) -> None:
    """The wheel is built from the unpacked sdist: neither has a need of the checkout."""
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name == f"edgeprune-{edgeprune.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    templates = {
        path for room in ("report", "tasks") for path in (ROOT / "edgeprune").glob(f"{room}/templates/*")
    }
    assert {str(path.relative_to(ROOT)) for path in templates} <= names
    assert {f"edgeprune/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.py")} <= names
    assert {"edgeprune/py.typed", "converters/py.typed", "converters/runtimes/latency.json"} <= names
    assert not [name for name in names if name.startswith(("tests", "recipes", "benchmarks"))]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "constraints.txt", "CITATION.cff", "recipes/vit_tiny.py"} <= inside
