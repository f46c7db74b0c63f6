"""`edgeprune doctor`: what is installed, what targets and runtimes need, how to get what is missing."""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING, Any

from converters.format import FORMATS
from converters.targets import TARGETS
from edgeprune import __version__
from edgeprune.commands.options import add_json
from edgeprune.commands.output import DIFFERS, DONE, deliver, json_text, refuse_unwritable
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from rich.console import Console

SCHEMA = 1
PYTHON = ((3, 10), (3, 14))
# What adds packages that a run can do without.
EXTRAS = (
    "tensorflow",
    "datasets",
    "hub",
    "tensorboard",
    *(format.extra for format in FORMATS.values() if format.extra),
)
# What depends on each other's versions, as constraints.txt has them: tested together.
TESTED = {
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "timm": "1.0.31",
    "coremltools": "9.0",
    "litert-torch": "0.10.0",
    "ai-edge-litert": "2.3.0",
    "ai-edge-quantizer": "0.10.0",
}
RUNTIMES = {
    "host": ("ai-edge-litert",),
    "x86-sparse": ("an x86-64 machine", "qemu-x86_64"),
    "arm64": ("qemu-aarch64", "Python and LiteRT for 64-bit ARM"),
    "browser": ("Node.js", "Chromium"),
}
EXAMPLES = """\
  edgeprune doctor
  edgeprune doctor --json - | jq .ok
"""
EXIT_STATUS = "exit status: 0 all that a run needs is there; 1 something is missing."


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Look, and show what was found."""
    refuse_unwritable(options.json)
    findings = examine()
    deliver(json_text(to_plain(findings)), options.json, lambda console: print_findings(findings, console))
    return DONE if complete(findings) else DIFFERS


class Part(str, Enum):
    """What a finding is about."""

    PYTHON = "python"
    PACKAGE = "package"
    VERSIONS = "version"
    WEIGHTS = "weights file"
    TARGET = "target"
    RUNTIME = "runtime"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        part: its kind.
        name: "torch", "coreml-ios16", "arm64".
        version: what is there; None where it is missing or has none.
        ok: whether it can be used.
        needed: whether a run needs it.
        remedy: the command that adds it, or why it cannot be used; None where nothing is to be done.
        needs: the packages and programs it is made of.
    """

    part: Part
    name: str
    version: str | None
    ok: bool
    needed: bool
    remedy: str | None = None
    needs: tuple[str, ...] = ()


def examine() -> list[Finding]:
    """Look at this installation; a runtime that is prepared is tried."""
    packages = _packages()
    return [_python(), *packages, *_tested(), *target_findings(packages), *_runtimes(), *_weights()]


def complete(findings: list[Finding]) -> bool:
    """Whether all that a run needs is there."""
    return all(finding.ok for finding in findings if finding.needed)


def _tested() -> list[Finding]:
    """Whether what is installed is what was tested together, for each package that it matters for."""
    from edgeprune.pipeline.environment import package_version

    found = []
    for name, tested in TESTED.items():
        here = package_version(name)
        same = here is not None and here.partition("+")[0] == tested
        remedy = None if same else f"{here or 'missing'} here, {tested} was tested with the others"
        found.append(Finding(Part.VERSIONS, f"{name} {tested}", here, same, False, remedy))
    return found


def _weights() -> list[Finding]:
    """Published weights that need no network: what torchvision and timm have fetched into their caches."""
    from edgeprune.models.pretrained import cached

    return [
        Finding(Part.WEIGHTS, name, f"{size_bytes / 1e6:.1f} MB", True, False)
        for name, size_bytes in cached()
    ]


def _python() -> Finding:
    lowest, below = (".".join(map(str, version)) for version in PYTHON)
    ok = PYTHON[0] <= sys.version_info[:2] < PYTHON[1]
    remedy = None if ok else f"edgeprune runs on Python {lowest} or later, below {below}"
    return Finding(Part.PYTHON, "python", platform.python_version(), ok, True, remedy)


def _packages() -> list[Finding]:
    """Every package edgeprune depends on, as its own metadata lists them, and the extra for users."""
    from packaging.requirements import Requirement

    try:
        listed = [Requirement(text) for text in requires("edgeprune") or ()]
    except PackageNotFoundError:
        return [Finding(Part.PACKAGE, "edgeprune", None, False, True, "pip install --editable CHECKOUT")]
    needed = [
        package for package in listed if package.marker is None or package.marker.evaluate({"extra": ""})
    ]
    extras = [
        package_finding(package, extra)
        for extra in EXTRAS
        for package in listed
        if package not in needed and package.marker and package.marker.evaluate({"extra": extra})
    ]
    own = Finding(Part.PACKAGE, "edgeprune", __version__, True, True)
    return [own, *(package_finding(package) for package in needed), *extras]


def package_finding(package: Requirement, extra: str | None = None) -> Finding:
    """Whether a package is installed in a version that fits; of an `extra` it is not needed."""
    from edgeprune.pipeline.environment import package_version

    found = package_version(package.name)
    ok = found is not None and package.specifier.contains(found, prereleases=True)
    what = f"edgeprune[{extra}]" if extra else f"{package.name}{package.specifier}"
    remedy = None if ok else f"pip install '{what}'"
    return Finding(Part.PACKAGE, package.name, found, ok, extra is None, remedy)


def target_findings(packages: list[Finding]) -> list[Finding]:
    """Each target can be written where the packages of its format are there."""
    usable = {package.name for package in packages if package.ok}
    findings = []
    for target in TARGETS.values():
        format = FORMATS[target.format]
        missing = [name for name in format.packages if name not in usable]
        remedy = format.missing() or (f"{', '.join(missing)} cannot be used: see above" if missing else None)
        needed = format.extra is None
        findings.append(
            Finding(Part.TARGET, target.name, None, remedy is None, needed, remedy, format.packages)
        )
    return findings


def _runtimes() -> list[Finding]:
    return [_runtime(name, needed=name == "host") for name in RUNTIMES]


def _runtime(name: str, needed: bool) -> Finding:
    try:
        from converters.runtimes.environments import runtime
        from converters.runtimes.prepare import check

        runtime(name).command()
        return Finding(Part.RUNTIME, name, check(name), True, needed, None, RUNTIMES[name])
    except (EdgepruneError, ImportError) as error:
        return Finding(Part.RUNTIME, name, None, False, needed, str(error).splitlines()[0], RUNTIMES[name])


def to_plain(findings: list[Finding]) -> dict[str, Any]:
    """Everything, as plain data for JSON."""
    return {
        "schema": SCHEMA,
        "ok": complete(findings),
        "platform": platform.platform(),
        "findings": [{**vars(finding), "part": finding.part.value} for finding in findings],
    }


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print a line for each finding, and what to do."""
    from rich.table import Table
    from rich.text import Text

    for part in Part:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
        for finding in findings:
            if finding.part is part:
                state = "✓" if finding.ok else "✕" if finding.needed else "–"
                style = "green" if finding.ok else "red" if finding.needed else "yellow"
                detail = finding.remedy or finding.version or ""
                table.add_row(
                    Text(state, style=style), Text(finding.name), Text(_needs(finding)), Text(detail)
                )
        console.print(
            Text(f"{part.value}s" if part is not Part.PYTHON else platform.platform(), style="bold")
        )
        console.print(table)
    console.print(Text(_conclusion(findings), style="bold"), soft_wrap=True)


def _needs(finding: Finding) -> str:
    return f"needs {', '.join(finding.needs)}" if finding.needs else ""


def _conclusion(findings: list[Finding]) -> str:
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    if missing:
        return f"A run needs what is missing: {', '.join(missing)}"
    optional = [f.name for f in findings if not f.ok and f.part is not Part.VERSIONS]
    more = f"; what could be used besides: {', '.join(optional)}" if optional else ""
    return f"All that a run needs is there{more}."
