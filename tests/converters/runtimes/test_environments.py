"""What each runtime needs, and what is said where it is missing."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from converters.errors import UserError
from converters.runtimes.environments import RUNTIMES, emulator, runtime


def test_an_unknown_runtime_lists_those_there_are() -> None:
    with pytest.raises(
        UserError, match="unknown runtime 'ios': choose from host, x86-sparse, arm64, browser"
    ):
        runtime("ios")


def test_a_runtime_that_is_not_prepared_says_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    with pytest.raises(UserError, match=rf"not prepared \({tmp_path}/arm64\): run make runtime-arm64"):
        RUNTIMES["arm64"].command()


def test_without_an_emulator_the_message_says_where_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match="qemu-x86_64 is not installed: run make runtimes, or install qemu-user"
    ):
        emulator("qemu-x86_64")


def test_a_fetched_emulator_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    fetched = tmp_path / "qemu" / "root" / "usr" / "bin" / "qemu-aarch64-static"
    fetched.parent.mkdir(parents=True)
    fetched.touch()
    assert emulator("qemu-aarch64") == str(fetched)


@pytest.mark.skipif(platform.machine() in ("x86_64", "AMD64"), reason="is about other processors")
def test_x86_without_avx_needs_x86() -> None:
    with pytest.raises(UserError, match="needs an x86-64 machine"):
        RUNTIMES["x86-sparse"].command()
