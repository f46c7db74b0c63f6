"""The table of methods in the docs: complete, and every claim in it has its test."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from edgeprune import pruning, recipe

HERE = Path(__file__).parent
TABLE = HERE.parents[2] / "docs" / "methods.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| method")
]


def names_of_tests(file: Path) -> set[str]:
    """Names of the test functions of a file."""
    return {
        node.name
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_method_has_a_paper_a_name_and_a_test_that_exists(row):
    method, paper, names, proof = row
    assert method
    assert re.search(r"\b(19|20)\d\d\b", paper) or paper.startswith("ours"), paper
    file, _, test = proof.strip("`").partition("::")
    assert test in names_of_tests(HERE / file), proof
    for name in re.findall(r"`([^`]+)`", names):
        if name.startswith('"'):
            assert name.strip('"') in pruning.CRITERIA
            continue
        if name == "accelerate launch":
            continue
        if name.startswith(("TrainConfig.", "Variant.")):
            assert hasattr(recipe, name.split(".")[0]), name
            assert name.split(".")[1] in getattr(recipe, name.split(".")[0]).__dataclass_fields__, name
            continue
        module, _, leaf = name.split("(")[0].rpartition(".")
        owner = importlib.import_module(f"edgeprune.pruning.{module}") if module else pruning
        assert hasattr(owner, leaf), name


def test_every_criterion_and_pattern_is_in_the_table():
    names = " ".join(row[2] for row in ROWS)
    for criterion in pruning.CRITERIA:
        assert f'"{criterion}"' in names
    for pattern in ("Unstructured", "Block", "NofM", "Channels"):
        assert f"`{pattern}(" in names
