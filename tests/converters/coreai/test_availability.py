"""Without Apple's packages every way to ask for a Core AI file says so in one line, with the command."""

from __future__ import annotations

import importlib.util
import platform
import sys

import pytest

from converters.coreai import availability
from converters.format import target_problems
from converters.targets import TARGETS
from edgeprune.cli import main
from edgeprune.commands import doctor

INSTALL = "pip install 'edgeprune[coreai]'"


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that has none of Apple's packages, on a machine for which there are some."""
    honest = importlib.util.find_spec
    modules = availability.PACKAGES.values()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else honest(name))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.usefixtures("without_packages")
def test_what_is_missing_is_one_line_with_the_command(monkeypatch):
    told = availability.missing()
    assert told is not None
    assert "coreai-core and coreai-torch are not installed" in told
    assert told.endswith(INSTALL)
    monkeypatch.setattr(sys, "version_info", (3, 10, 14, "final", 0))
    told = availability.missing()
    assert told is not None
    assert "no packages for Python 3.10" in told
    assert "Python 3.11 or later" in told
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert availability.missing() == (
        "Core AI: Apple has no packages for linux on aarch64: use macOS or x86-64 Linux"
    )


@pytest.mark.usefixtures("without_packages")
def test_targets_of_one_format_are_one_line():
    wanted = [TARGETS[name] for name in ("coreai-ios27", "litert-arm64", "coreai-ios27-int8")]
    (problem,) = target_problems(wanted)
    assert problem.startswith("coreai-ios27, coreai-ios27-int8: Core AI needs Apple's packages")
    assert target_problems([TARGETS["coreml-ios16"]]) == []


@pytest.mark.usefixtures("without_packages")
def test_a_run_is_refused_before_anything_is_read_or_written(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'model = "mobilenet_v3_small"\ndata = "{tmp_path / "no-such-folder"}"\n'
        f'output = "{tmp_path / "out"}"\ntargets = ["coreai-ios27"]\n'
    )
    assert main(["run", str(recipe)]) == 2
    told = capsys.readouterr().err
    assert "coreai-ios27: Core AI needs Apple's packages" in told
    assert INSTALL in told
    assert "no-such-folder" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_packages")
def test_convert_is_refused_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "no_such_module:model", "--target", "coreai-ios27"]) == 2
    told = capsys.readouterr().err
    assert INSTALL in told
    assert "no_such_module" not in told


@pytest.mark.usefixtures("without_packages")
def test_doctor_gives_the_command_for_the_targets():
    findings = {finding.name: finding for finding in doctor.target_findings([])}
    finding = findings["coreai-ios27-4bit"]
    assert (finding.ok, finding.needed) == (False, False)
    assert finding.remedy is not None
    assert finding.remedy.endswith(INSTALL)
    assert findings["coreml-ios16"].remedy == "coremltools cannot be used: see above"
