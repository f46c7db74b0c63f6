"""Preparing a runtime, but for what takes a network: what is fetched is tried by `make runtimes` itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from converters.errors import ToolError, UserError
from converters.runtimes import prepare


def test_the_check_runs_a_file() -> None:
    assert prepare.check("host").startswith("LiteRT ")


@pytest.mark.parametrize("name", ["arm64", "x86-sparse"])
def test_without_debians_tools_the_message_says_what_is_needed(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "converters.runtimes.prepare", name]
    environment = {"PATH": str(tmp_path), "EDGEPRUNE_RUNTIMES": str(tmp_path / "new")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(prepare.__file__).parents[2]
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: apt-get and dpkg not found: ")
    assert "needs Debian" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_preparation_starts_again(tmp_path: Path) -> None:
    (tmp_path / "r" / ".arm64.new.tmp" / "debs").mkdir(parents=True)
    with prepare.built(tmp_path / "r" / "arm64") as work:
        assert list(work.iterdir()) == []
        (work / "root").mkdir()
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["arm64"]
    assert (tmp_path / "r" / "arm64" / "root").is_dir()


def test_a_failed_preparation_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "arm64" / "site").mkdir(parents=True)

    def fail() -> None:
        with prepare.built(tmp_path / "arm64") as work:
            (work / "half").touch()
            raise ToolError("no network")

    with pytest.raises(ToolError, match="no network"):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["arm64", "site"]


def test_a_failing_tool_is_quoted() -> None:
    code = "import sys; print('out'); sys.exit('E: no mirror answers')"
    with pytest.raises(ToolError, match=r"^apt cannot download python3:\nE: no mirror answers$"):
        prepare.run_tool([sys.executable, "-c", code], "apt cannot download python3:")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_an_apt_that_lists_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """apt itself calls it a success: here without a source, elsewhere without a network."""
    settings = tmp_path / "apt.conf"
    settings.write_text('Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "/dev/null";')
    monkeypatch.setenv("APT_CONFIG", str(settings))
    with pytest.raises(ToolError, match="apt lists no arm64 packages: are its mirrors reached"):
        prepare.fetch("arm64", ["python3"], tmp_path / "debs")


def test_pythons_version_is_that_of_the_package(tmp_path: Path) -> None:
    programs = tmp_path / "usr" / "bin"
    programs.mkdir(parents=True)
    with pytest.raises(ToolError, match="has no python3"):
        prepare.python_version(tmp_path)
    (programs / "python3").symlink_to("python3.13")
    assert prepare.python_version(tmp_path) == "3.13"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package_is_unpacked_and_its_libraries_are_found(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr" / "lib").mkdir(parents=True)
    (tree / "usr" / "lib" / "ld.so").write_text("loader")
    control = (
        "Package: loader\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    package = tmp_path / "loader.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(package)], check=True, capture_output=True)
    prepare.unpack([package], tmp_path / "root")
    prepare.link_libraries(tmp_path / "root")
    assert (tmp_path / "root" / "lib" / "ld.so").read_text() == "loader"


def test_only_the_emulators_needed_are_kept(tmp_path: Path) -> None:
    for name in ("qemu-x86_64-static", "qemu-aarch64", "qemu-aarch64_be-static", "qemu-m68k"):
        (tmp_path / name).touch()
    prepare.keep_emulators(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"qemu-x86_64-static", "qemu-aarch64"}


def test_an_own_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write .*file/arm64"),
        prepare.built(tmp_path / "file" / "arm64"),
    ):
        pytest.fail("built")
