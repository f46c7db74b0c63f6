"""What CI systems read of `edgeprune check`: JUnit XML, and GitHub's annotations."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from edgeprune.commands.check import CheckResult

# Characters XML cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(result: CheckResult) -> str:
    """JUnit XML: a test case for each entry, failed where it does not pass."""
    failed = sum(not entry.ok for entry in result.entries)
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(f"edgeprune check {result.subject}"),
        tests=str(len(result.entries)),
        failures=str(failed),
        errors="0",
        skipped="0",
    )
    for entry in result.entries:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_xml(f"edgeprune.{entry.target}"), name=_xml(entry.name)
        )
        if not entry.ok:
            failure = ElementTree.SubElement(case, "failure", message=_xml(entry.status.value))
            failure.text = _xml("\n".join(entry.told))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def on_github() -> bool:
    """Whether this runs as a step of a GitHub workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def github_annotations(result: CheckResult) -> Iterator[str]:
    """A workflow command of GitHub for each entry that does not pass, which it shows beside the file."""
    for entry in result.entries:
        if not entry.ok:
            where = "" if entry.nearest is None else f"file={_property(str(entry.nearest.path))},"
            title = _property(f"{entry.name}: {entry.status.value}")
            yield f"::error {where}title={title}::{_message(chr(10).join(entry.told))}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """A value between the commas: those and colons would end it."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
