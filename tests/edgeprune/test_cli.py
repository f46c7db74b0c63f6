"""One vocabulary: every command explains itself, takes --json, and its examples are true."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeprune.cli import main
from edgeprune.commands import COMMANDS, module
from edgeprune.commands import parser as arguments
from edgeprune.commands.completion import SHELLS
from edgeprune.report import records
from tests.support.runs import TARGET, write_network

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "docs" / "ci" / "github-workflow.yml"


def helped(name: str, capsys: Any) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    return str(capsys.readouterr().out)


def edgeprune_commands(text: str) -> list[list[str]]:
    """What stands behind each `edgeprune` of a shell text, up to a pipe, a redirection or a comment."""
    lines = re.findall(r"^\s*(?:- run: |run: )?edgeprune (.*)$", text, re.MULTILINE)
    return [shlex.split(re.split(r"\s[|>#]", line)[0], comments=True) for line in lines]


def parse(words: list[str]) -> None:
    """Parse a command as `main` does; a command that is wrong ends the test."""
    assert arguments.parse(words).execute is module(words[0]).execute


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse_and_an_exit_status(name: str, capsys: Any) -> None:
    told = helped(name, capsys)
    assert "exit status: 0" in told
    assert "examples:\n  edgeprune " in told
    found = [words for words in edgeprune_commands(told) if words[0] == name]
    assert found
    for words in found:
        if "--help" not in words:
            parse(words)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_takes_json(name: str, capsys: Any) -> None:
    assert "--json OUT" in helped(name, capsys)


def test_the_commands_of_the_readme_parse() -> None:
    pages = ("README.md", "docs/budgets.md", "docs/measuring.md")
    found = [
        words for page in pages for words in edgeprune_commands((ROOT / page).read_text(encoding="utf-8"))
    ]
    assert {words[0] for words in found} >= {
        "run",
        "report",
        "check",
        "compare",
        "inspect",
        "verify",
        "bench",
    }
    for words in found:
        parse(words)


def test_the_example_workflow_is_yaml_and_its_commands_parse() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    found = [words for step in steps for words in edgeprune_commands(step)]
    assert [words[0] for words in found] == ["doctor", "check"]
    commented = edgeprune_commands(re.sub(r"^\s*# - run: ", "", text, flags=re.MULTILINE))
    assert {words[0] for words in commented} == {"doctor", "check", "bench"}
    for words in [*found, *commented]:
        parse(words)


def test_the_example_workflow_checks_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check, as the shell of a workflow would run it, in an app's repository."""
    (job,) = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"].values()
    (command,) = (step["run"] for step in job["steps"] if "edgeprune check" in step.get("run", ""))
    size = write_network(tmp_path / "models" / f"app-{TARGET}.tflite").stat().st_size
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for most, status in ((size, 0), (size - 1, 1)):
        (tmp_path / "budget.toml").write_text(f"top1_drop_points = 0.5\n[bytes]\n{TARGET} = {most}\n")
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        assert (tmp_path / "check.xml").is_file()
        assert ("::error file=models/" in done.stdout) == bool(status)


# --- Completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_knows_every_command(shell: str, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        assert name in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    ask = f"""
        COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
        COMP_LINE={shlex.quote(" ".join(words))}
        $(complete -p edgeprune | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_and_choices(capsys: Any) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert set(complete(script, "edgeprune", "co")) >= {"compare", "completion"}
    assert "--budget" in complete(script, "edgeprune", "check", "--b")
    assert complete(script, "edgeprune", "completion", "zs") == ["zsh"]


# --- JSON of the commands that had none ---------------------------------------------------------------------


def test_inspect_as_json(tmp_path: Path, capsys: Any) -> None:
    path = write_network(tmp_path / "model.tflite", zeros=(0.8,))
    assert main(["inspect", str(path), "--json", "-"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["format"], plain["bytes"]) == ("litert", path.stat().st_size)
    assert plain["input"]["shape"] == [3, 32, 32]
    sparse = [layer for layer in plain["layers"] if layer["encoding"].startswith("sparse")]
    assert sparse[0]["zero_fraction"] == pytest.approx(0.8, abs=0.01)
    assert set(plain["runtimes"]) == {"arm64", "web"}
    assert main(["inspect", str(path), "--json", str(tmp_path / "out.json")]) == 0
    assert "bits/weight" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == plain


def test_inspect_a_package_as_json(finished_run: Path, capsys: Any) -> None:
    path = finished_run / "files" / "block80-coreml-ios16.mlpackage"
    assert main(["inspect", str(path), "--json", "-"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["format"], plain["lowest_os"]) == ("coreml", "iOS 16, macOS 13")
    assert any(layer["encoding"].startswith("sparse") for layer in plain["layers"])


def test_run_and_report_give_the_report_as_json(finished_run: Path, tmp_path: Path, capsys: Any) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    assert main(["report", str(run), "--json", "-"]) == 0
    assert capsys.readouterr().out == (run / records.FILE_NAME).read_text(encoding="utf-8")
    out = tmp_path / "out.json"
    # Behind the recipe its fields stand, and this.
    assert main(["run", str(run / "recipe.toml"), "--output", str(run), "--json", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == (run / records.FILE_NAME).read_text(encoding="utf-8")
    assert "Full report: " in capsys.readouterr().out
    assert main(["run", str(run / "recipe.toml"), "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "no such folder" in capsys.readouterr().err
