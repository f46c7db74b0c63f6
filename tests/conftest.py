"""What every test shares: a quiet, small, repeatable machine."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line sets it

import pytest
import torch

# Garbage is looked for among all that torch and the converters keep: seldom is enough.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes: tests that share what is slow to make stay in one, and the longest begin."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _group(item) != "run")


def _group(item: pytest.Item) -> str:
    if "finished_run" in getattr(item, "fixturenames", ()) or item.path.stem == "test_processes":
        return "run"
    return "coreml" if "coreml" in item.path.parts else item.path.stem
