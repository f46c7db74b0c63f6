"""A small made-up report: three variants on two Core ML and two LiteRT targets, and all else there may be."""

from __future__ import annotations

import pytest

from tests.support.reports import make_report, make_row


@pytest.fixture
def row():
    """Return a function that makes a row, its arguments changing single fields."""
    return make_row


@pytest.fixture(scope="session")
def report():
    """Return a function that makes the report, its argument being the budget in the recipe."""
    return make_report
