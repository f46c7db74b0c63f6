"""A small network with known zeros, converted for every target once for all tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from converters.facts import Converted
from converters.targets import TARGETS
from tests.support.packages import LABELS, NORMALIZATION, Tiny, prepare, prunable

NAMES = tuple(name for name, target in TARGETS.items() if target.format == "coreai")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything marked so is skipped without the extra, and says what installs it."""
    if importlib.util.find_spec("coreai") is not None:
        return
    reason = "Core AI is an extra: make test-coreai"
    for item in items:
        if item.get_closest_marker("coreai"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Zeros of its own in each prunable layer: 50 % up, so that no two shares are alike."""
    torch.manual_seed(0)
    model = prepare(Tiny(), zeros=0.5)
    for number, module in enumerate(prunable(model).values()):
        weight = module.weight.data
        last = weight.abs().flatten().kthvalue(int((0.6 + 0.05 * number) * weight.numel())).values
        weight[weight.abs() <= last] = 0
    return model


@pytest.fixture(scope="session")
def files(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Converted]:
    """By target."""
    from converters import coreai

    folder: Path = tmp_path_factory.mktemp("coreai")
    prepared = coreai.prepare(tiny, torch.zeros(1, 3, 32, 32), NORMALIZATION)
    metadata = {"author": "Ada", "license": "Apache-2.0", "short_description": "ten things", "note": "a"}
    return {
        name: coreai.write(prepared, name, folder / f"{name}.aimodel", labels=LABELS, metadata=metadata)
        for name in NAMES
    }
