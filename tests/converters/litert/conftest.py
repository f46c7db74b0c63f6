"""Networks small enough to build by hand, so that each test can break exactly one thing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.networks import Network, eligible


@pytest.fixture(scope="session")
def network() -> type[Network]:
    return Network


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    """A file the linter has nothing against."""
    net = eligible()
    path = tmp_path / "sparse.tflite"
    path.write_bytes(net.finish(net.linear(net.flatten(net.mean(net.last)), 10)))  # type: ignore[attr-defined]
    return path
