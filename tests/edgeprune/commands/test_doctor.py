"""`edgeprune doctor` on this installation."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from converters.runtimes import environments
from converters.targets import TARGETS
from edgeprune.cli import main
from edgeprune.commands import doctor
from edgeprune.commands.doctor import Part


@pytest.fixture(scope="module")
def findings() -> list[doctor.Finding]:
    return doctor.examine()


def named(findings: list[doctor.Finding], part: Part) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings if finding.part is part}


def test_here_all_that_a_run_needs_is_there(findings: list[doctor.Finding]) -> None:
    assert doctor.complete(findings)
    packages = named(findings, Part.PACKAGE)
    assert packages["torch"].version == version("torch")
    assert packages["torch"].needed
    assert not packages["tensorflow"].needed
    assert "pytest" not in packages
    assert set(named(findings, Part.TARGET)) == set(TARGETS)
    host = named(findings, Part.RUNTIME)["host"]
    assert host.version == f"LiteRT {version('ai-edge-litert')}"


def test_targets_and_runtimes_say_what_they_need(findings: list[doctor.Finding]) -> None:
    assert set(doctor.RUNTIMES) == set(environments.RUNTIMES)
    assert named(findings, Part.TARGET)["coreml-ios16"].needs == ("coremltools",)
    assert "qemu-aarch64" in named(findings, Part.RUNTIME)["arm64"].needs
    packages = set(named(findings, Part.PACKAGE))
    for target in named(findings, Part.TARGET).values():
        assert set(target.needs) <= packages


def test_a_runtime_that_is_not_prepared_comes_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    assert main(["doctor", "--json", "-"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["ok"] is True
    (arm64,) = (finding for finding in plain["findings"] if finding["name"] == "arm64")
    assert (arm64["part"], arm64["ok"], arm64["needed"]) == ("runtime", False, False)
    assert "run make runtime-arm64" in arm64["remedy"]


def test_packages_that_are_missing_or_of_another_version() -> None:
    missing = doctor.package_finding(Requirement("not-a-package-of-anyone>=2,<3"))
    assert (missing.ok, missing.version) == (False, None)
    assert missing.remedy == "pip install 'not-a-package-of-anyone<3,>=2'"
    old = doctor.package_finding(Requirement("numpy<1"))
    assert (old.ok, old.version) == (False, version("numpy"))
    assert old.remedy == "pip install 'numpy<1'"


def test_without_a_package_its_targets_cannot_be_written(findings: list[doctor.Finding]) -> None:
    without = [
        replace(finding, ok=finding.name != "coremltools")
        for finding in findings
        if finding.part is Part.PACKAGE
    ]
    targets = {finding.name: finding for finding in doctor.target_findings(without)}
    assert targets["coreml-ios16"].remedy == "coremltools cannot be used: see above"
    assert targets["litert-arm64"].ok
    assert not doctor.complete(without)


def test_the_list_says_what_to_do(findings: list[doctor.Finding], capsys: Any) -> None:
    from rich.console import Console

    broken = [
        replace(finding, ok=False, remedy="pip install torch") if finding.name == "torch" else finding
        for finding in findings
    ]
    doctor.print_findings(broken, Console(width=120))
    told = capsys.readouterr().out
    assert "✕ torch" in told
    assert "pip install torch" in told
    assert told.rstrip().endswith("A run needs what is missing: torch")


def test_what_was_tested_together_is_what_constraints_say(findings: list[doctor.Finding]) -> None:
    lines = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    exact = dict(
        line.partition(";")[0].strip().split("==") for line in lines if "==" in line.partition(";")[0]
    )
    assert {name: exact[name] for name in doctor.TESTED} == doctor.TESTED
    versions = named(findings, Part.VERSIONS)
    assert versions[f"torch {doctor.TESTED['torch']}"].ok == (
        version("torch").partition("+")[0] == doctor.TESTED["torch"]
    )
    assert all(finding.ok == (finding.remedy is None) for finding in versions.values())


def test_weights_in_the_caches_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    snapshot = tmp_path / "hf" / "models--timm--lcnet_050.ra2_in1k" / "snapshots" / "abc"
    for folder, name in (
        (tmp_path / "hub" / "checkpoints", "resnet18-f37072fd.pth"),
        (snapshot, "model.safetensors"),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(bytes(2_500_000))
    (snapshot / "config.json").write_text("{}")
    weights = named(doctor.examine(), Part.WEIGHTS)
    assert {name: finding.version for name, finding in weights.items()} == {
        "resnet18-f37072fd.pth": "2.5 MB",
        "timm/lcnet_050.ra2_in1k, model.safetensors": "2.5 MB",
    }
