"""The field's words in what people read: help, templates and documents."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from edgeprune.cli import main
from edgeprune.commands import COMMANDS

ROOT = Path(__file__).parent.parent
# What the field does not say, each with what it does.
BANNED = {
    "worse images": "corrupted images",
    "makes no sense": "validation errors",
    "is carried by": "targets with ... weights",
    "timed in turns": "interleaved",
}
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def help_of(command: str) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return " ".join(told.getvalue().split())


READ = {
    **{f"edgeprune {name} --help": lambda name=name: help_of(name) for name in COMMANDS},
    **{
        str(path.relative_to(ROOT)): path.read_text
        for path in (
            *(ROOT / "edgeprune").rglob("*.jinja"), ROOT / "README.md",
            *(ROOT / "docs" / f"{name}.md" for name in ("guide", "budgets", "measuring")),
            *(ROOT / "sample_apps" / "web" / "src").glob("*.html"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_what_people_read_has_the_fields_words(text: str) -> None:
    told = READ[text]()
    assert told
    assert [word for word in BANNED if word in told] == []


def test_the_glossary_explains_what_an_engineer_searches_for() -> None:
    terms = [line.split("|")[1].strip() for line in GLOSSARY.splitlines() if re.match(r"\| \w", line)][1:]
    assert len(terms) >= 40
    assert terms == sorted(terms, key=str.lower)
    for word in (
        "structured pruning",
        "channel pruning",
        "weight-only",
        "validation set",
        "latency",
        "fine-tuning",
    ):
        assert word in GLOSSARY
