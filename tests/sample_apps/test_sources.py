"""Every source of the apps parses, and the workflows run the commands that the READMEs name."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
APPS = ROOT / "sample_apps"
GRAMMARS = {
    ".kt": ("tree_sitter_kotlin", "language"),
    ".kts": ("tree_sitter_kotlin", "language"),
    ".swift": ("tree_sitter_swift", "language"),
    ".xml": ("tree_sitter_xml", "language_xml"),
}
LEFT_OUT = {"node_modules", "build", ".build", ".gradle", "web", "vectors"}
SOURCES = sorted(
    path
    for path in APPS.rglob("*")
    if path.suffix in GRAMMARS and not LEFT_OUT & set(path.relative_to(APPS).parts)
)


def faults(path: Path, text: bytes) -> list[str]:
    tree_sitter = pytest.importorskip("tree_sitter", reason="the dev extra is not installed")
    module, name = GRAMMARS[path.suffix]
    grammar = pytest.importorskip(module, reason="the dev extra is not installed")
    tree = tree_sitter.Parser(tree_sitter.Language(getattr(grammar, name)())).parse(text)
    found, waiting = [], [tree.root_node]
    while waiting:
        node = waiting.pop()
        if node.is_error or node.is_missing:
            found.append(f"{path.name}:{node.start_point[0] + 1}: {node.type}")
        waiting += node.children if node.has_error else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(APPS).as_posix())
def test_a_source_parses(path: Path) -> None:
    assert faults(path, path.read_bytes()) == []


@pytest.mark.parametrize("suffix", [".kt", ".swift", ".xml"])
def test_a_source_without_its_last_bracket_does_not_parse(suffix: str) -> None:
    path = max((path for path in SOURCES if path.suffix == suffix), key=lambda path: path.stat().st_size)
    text = path.read_bytes().rstrip()
    assert faults(path, text[: text.rindex(b">" if suffix == ".xml" else b"}")])


def test_both_apps_are_there() -> None:
    assert {path.suffix for path in SOURCES} == set(GRAMMARS)
    assert len(SOURCES) > 20


def test_an_android_app_keeps_models_uncompressed_and_never_names_the_old_library() -> None:
    gradle = (APPS / "android" / "app" / "build.gradle.kts").read_text()
    assert 'noCompress += "tflite"' in gradle
    assert "useLegacyPackaging = false" in gradle
    assert re.search(r'"com\.google\.ai\.edge\.litert:litert:2\.\d+\.\d+"', gradle)
    assert "org.tensorflow:tensorflow-lite" not in gradle


def workflow(name: str) -> dict[str, Any]:
    yaml = importlib.import_module("yaml")
    found: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "ci" / name).read_text())
    return found


def commands(name: str) -> list[str]:
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    return [line.strip() for step in steps for line in step.get("run", "").splitlines() if line.strip()]


def test_the_workflow_of_the_apps_runs_what_their_readmes_say() -> None:
    ran = commands("apps-workflow.yml")
    runners = {job["runs-on"] for job in workflow("apps-workflow.yml")["jobs"].values()}
    assert {runner.split("-")[0] for runner in runners} == {"ubuntu", "macos"}
    for app in ("android", "ios"):
        readme = (APPS / app / "README.md").read_text()
        told = re.findall(r"^    ((?:make|gradle|swift|xcodebuild|cd) .*)$", readme, re.MULTILINE)
        assert told
        missing = [line for line in told if line not in ran]
        assert not missing, f"{app}: {missing}"
    assert any("-m macos" in line for line in ran)
