"""The examples in the docstrings are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from converters.errors import UserError

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("edgeprune", "converters")
    for file in (ROOT / package).rglob("*.py")
    if ">>>" in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    try:
        module = import_module(name)
    except UserError as missing:  # An extra that is not installed.
        pytest.skip(str(missing))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
