"""The field's words in what people read: help, templates and documents."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.budget import Budget
from edgeprune.cli import main
from edgeprune.commands import COMMANDS
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import Augment, TrainConfig

ROOT = Path(__file__).parent.parent
# What the field does not say, each with what it does.
BANNED = {
    "worse images": "corrupted images",
    "makes no sense": "validation errors",
    "is carried by": "targets with ... weights",
    "timed in turns": "interleaved",
    "what disturbs one": "background load affects every file alike",
    "anew": "again",
    "the floor under": "the baseline",
    "COMPUTE WHAT IT MUST": "outputs differ by more than the tolerance",
}
BANNED_WORDS = re.compile(rf"\b({'|'.join(BANNED)})\b")
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
            *(ROOT / "docs").rglob("*.md"), ROOT / "recipes" / "README.md",
            *(ROOT / "sample_apps" / "web" / "src").glob("*.html"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_what_people_read_has_the_fields_words(text: str) -> None:
    told = READ[text]()
    assert told
    assert BANNED_WORDS.findall(told) == []


@pytest.mark.parametrize("module", sorted((ROOT / "edgeprune").rglob("*.py")), ids=lambda path: path.stem)
def test_messages_and_docstrings_have_the_fields_words(module: Path) -> None:
    texts = [
        node.value
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert BANNED_WORDS.findall("\n".join(texts)) == []


NUMBER = re.compile(r"\b(INT|FLOAT)\b|NAME=VALUE")
RANGE = re.compile(r"\bfrom \d|\babove \d|\bor more\b|\bup to\b")


def fields_in_help() -> dict[str, tuple[str, str, str]]:
    """Metavar, text and default of each field, as `--help` of a recipe shows them."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        main(["run", "mobilenet_v3_small", "--help"])
    lines = "\n".join(line.strip("│ ╭╮╰╯─") for line in page.getvalue().splitlines())
    entries = re.split(r"^(?=--[a-z])", lines, flags=re.MULTILINE)[1:]
    found = {}
    for entry in entries:
        head, _, rest = entry.partition("\n")
        text, default = re.match(r"(.*?)\((?:default|fixed to): (.*?)\)", " ".join(rest.split())).groups()
        flag, _, metavar = head.partition(" ")
        found[flag.rstrip(",")] = (metavar, text.strip(), default)
    return found


@pytest.fixture(scope="module")
def fields() -> Iterator[dict[str, tuple[str, str, str]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "110")  # One column of fields.
        yield fields_in_help()


def test_help_shows_every_field_of_a_recipe(fields: dict[str, tuple[str, str, str]]) -> None:
    nested = {"augment": Augment, "dense": TrainConfig, "variants.block80": Variant, "budget": Budget}
    nested |= {"variants.block80.fit": TrainConfig}
    wanted = {f"{place}.{field.name}" for place, cls in nested.items() for field in dataclasses.fields(cls)}
    wanted |= {field.name for field in dataclasses.fields(Recipe)} | {"variants.block80.fit"}
    wanted -= {"variants", *nested}
    assert {"--" + name.replace("_", "-") for name in wanted} <= set(fields)


def test_every_field_is_explained_in_sentences_with_unit_range_and_default(
    fields: dict[str, tuple[str, str, str]],
) -> None:
    faults = []
    for flag, (metavar, text, default) in fields.items():
        if not text[:1].isupper() or not text.endswith("."):
            faults.append(f"{flag}: not a sentence: {text}")
        if NUMBER.search(metavar) and not RANGE.search(text):
            faults.append(f"{flag}: no range: {text}")
        if default == "None" and "None: " not in text:
            faults.append(f"{flag}: what None does is not said: {text}")
        if default in ("", "''") and "Empty: " not in text:
            faults.append(f"{flag}: what leaving it empty does is not said: {text}")
        if flag.endswith("-px") and "pixels" not in text:
            faults.append(f"{flag}: no unit: {text}")
    assert faults == []


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
