"""The browser runtime, where it is prepared: the same answers as this processor's LiteRT gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.errors import ToolError, UserError
from converters.runtimes.environments import RUNTIMES
from converters.runtimes.running import FileRun, run_files
from converters.targets import Storage
from tests.support.networks import eligible

BROWSER = RUNTIMES["browser"]
LIMIT = 1e-4  # of the largest value: each runtime adds up in its own order


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    try:
        run_files([], BROWSER)  # starts Chromium, which may be missing where all else is there
    except (UserError, ToolError) as reason:
        pytest.skip(str(reason))


def images(count: int) -> np.ndarray:
    """Bright ones: the network's small weights leave little of others."""
    return (1e3 * np.random.default_rng(0).normal(size=(count, 16, 16, 3))).astype(np.float32)


@pytest.mark.parametrize("storage", [Storage.FLOAT32, Storage.INT8])
def test_a_sparse_file_gives_the_same_values_as_here(storage: Storage, tmp_path: Path) -> None:
    net = eligible()
    path = tmp_path / "sparse.tflite"
    output = net.linear(net.flatten(net.mean(net.last)), 10)  # type: ignore[attr-defined]
    path.write_bytes(net.finish(output, storage))
    task = FileRun(path, images(3))
    browser, host = run_files([task], BROWSER), run_files([task], RUNTIMES["host"])
    assert browser.version.startswith("LiteRT.js ")
    assert "Chromium" in browser.version
    given, wanted = browser.answers[0].outputs, host.answers[0].outputs
    assert given is not None
    assert wanted is not None
    assert given.shape == wanted.shape
    assert np.ptp(wanted, axis=0).max() > 0.1 * np.abs(wanted).max()  # the images are told apart
    assert np.abs(given - wanted).max() < LIMIT * np.abs(wanted).max()


def test_files_that_are_refused_or_crash_do_not_stop_the_others(
    refused: Path, crashes: Path, runs: Path
) -> None:
    tasks = [FileRun(path, images(1)) for path in (refused, crashes, runs)]
    steps: list[tuple[int, int]] = []
    first, second, third = run_files(
        tasks, BROWSER, rounds=2, warmup=1, show=lambda *step: steps.append(step)
    ).answers
    assert first.outputs is None
    assert str(first.refused)
    assert second.outputs is None
    assert str(second.refused)
    assert third.refused is None
    assert len(third.milliseconds) == 2
    assert all(0 < time_ms < 1000 for time_ms in third.milliseconds)
    assert steps[0] == (0, 12)
