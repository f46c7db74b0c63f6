"""benchmark_model: given, found, or downloaded once from a real server and checked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from converters.errors import UserError
from converters.runtimes.benchmark_model import ARM64, TOOL, Release, find_tool

CONTENT = bytes(range(256)) * 900


class Quiet(SimpleHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        Quiet.asked += 1
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of a folder's files; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Quiet.asked = 0
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path / "runtimes"))
    for name in ("http_proxy", "HTTP_PROXY", "EDGEPRUNE_BENCHMARK_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / TOOL).write_bytes(CONTENT)
    return tmp_path / "runtimes" / "android" / TOOL


def release(address: str, content: bytes = CONTENT) -> Release:
    return Release(f"{address}/{TOOL}", len(content), hashlib.sha256(content).hexdigest()[:8])


def test_it_is_downloaded_once_and_can_be_run(kept: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "web") as address:
        assert find_tool(None, release(address)) == kept
        assert find_tool(None, release(address)) == kept
        assert Quiet.asked == 1
    assert kept.read_bytes() == CONTENT
    assert kept.stat().st_mode & 0o111


def test_one_that_is_given_is_taken(kept: Path, tmp_path: Path) -> None:
    own = tmp_path / "web" / TOOL
    assert find_tool(own) == own
    with pytest.raises(UserError, match="missing: no such file: leave --benchmark-model out"):
        find_tool(tmp_path / "missing")
    assert not kept.exists()


@pytest.mark.parametrize(
    "wrong", [CONTENT[:-1], CONTENT + b"x", b"x" + CONTENT[1:]], ids=["cut", "longer", "another"]
)
def test_another_one_is_refused_and_not_kept(wrong: bytes, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "web" / TOOL).write_bytes(wrong)
    with serving(tmp_path / "web") as address, pytest.raises(UserError) as raised:
        find_tool(None, release(address))
    (problem,) = raised.value.problems
    assert f"is not {TOOL} 2.2.0: {len(wrong):,} bytes" in problem
    assert list(kept.parent.iterdir()) == []


def test_offline_and_where_it_is_not_are_one_message(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "web" / TOOL).unlink()
    with (
        serving(tmp_path / "web") as address,
        pytest.raises(UserError, match="HTTP Error 404: File not found"),
    ):
        find_tool(None, release(address))
    with pytest.raises(UserError) as raised:  # the server is gone
        find_tool(None, release(address))
    (problem,) = raised.value.problems
    assert "cannot be fetched ([Errno 111] Connection refused): go online once, or give one with" in problem
    assert str(kept) in problem
    assert list(kept.parent.iterdir()) == []


def test_a_mirror_is_asked_instead(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "web") as address:
        monkeypatch.setenv("EDGEPRUNE_BENCHMARK_MODEL_URL", f"{address}/{TOOL}")
        find_tool(None, release("http://127.0.0.1:1"))
    assert kept.exists()
    assert ARM64.url.startswith("https://storage.googleapis.com/litert/binaries/2.2.0/android_arm64/")
