"""`edgeprune card` and `edgeprune push`: what the hub's own reader makes of a card; a hub of this machine."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli import main
from edgeprune.report import card, records
from tests.support.reports import BYTES, TARGETS, make_report
from tests.support.runs import TARGET, write_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "run"
    write_run(folder, {"dense": (0.0, 0.0), "block80": (0.8, 0.8)}, {"block80": 0.25})
    (folder / "recipe.toml").write_text('model = "m"\n')
    (folder / "report.html").write_text("pictures")
    (folder / "thumbnails").mkdir()
    (folder / "thumbnails" / "00001.jpg").write_bytes(b"x")
    assert main(["card", str(folder), "--license", "apache-2.0"]) == 0
    return folder


def test_the_hubs_reader_finds_every_score(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    report = make_report()
    read = ModelCard(card.text(report, "mit"))
    assert read.data.license == "mit"
    assert read.data.pipeline_tag == "image-classification"
    assert {"coreml", "litert", "tflite", "mlpackage"} <= set(read.data.tags)
    found = {
        (result.metric_type, result.metric_name): result.metric_value for result in read.data.eval_results
    }
    assert found == {("accuracy", f"top-1 of {row.path}"): round(row.score, 6) for row in report.rows}
    for variant, sizes in BYTES.items():
        for target, size in zip(TARGETS, sizes, strict=True):
            (line,) = (one for one in read.text.splitlines() if f"| files/{variant}-{target}." in one)
            assert f"| {size:,} |" in line
    assert "VNCoreMLRequest" in read.text
    assert "noCompress" in read.text
    assert "licence of these weights is not stated" not in read.text
    assert "licence of these weights is not stated" in card.text(report)


def test_a_card_changed_by_hand_stays(run: Path, tmp_path: Path, capsys: Any) -> None:
    written = (run / "README.md").read_text()
    (run / "README.md").write_text(written + "\nMy words.\n")
    try:
        assert main(["card", str(run), "--license", "apache-2.0"]) == 2
        assert f"edgeprune card {run} --overwrite" in capsys.readouterr().err
        assert (run / "README.md").read_text().endswith("My words.\n")
    finally:
        (run / "README.md").write_text(written)


def test_a_dry_run_lists_what_would_be_sent_and_no_pictures(run: Path, capsys: Any) -> None:
    assert main(["push", str(run), "someone/model", "--dry-run", "--json", "-"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [file["path"] for file in plain["files"]] == [
        "README.md", "report.json", "recipe.toml",
        f"files/dense-{TARGET}.tflite", f"files/block80-{TARGET}.tflite",
    ]  # fmt: skip
    assert all(file["bytes"] == (run / file["path"]).stat().st_size for file in plain["files"])
    assert plain["sent"] is False


def test_what_cannot_be_sent_is_said_all_at_once(run: Path, tmp_path: Path, capsys: Any) -> None:
    report = records.read(run)
    records.write(report, tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / f"dense-{TARGET}.tflite").write_bytes(b"another")
    assert main(["push", str(tmp_path), "model", "--dry-run"]) == 2
    told = capsys.readouterr().err
    for words in (
        "NAME/REPOSITORY",
        f"edgeprune card {tmp_path}",
        "not the file that was measured",
        "is missing",
    ):
        assert words in told


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a commit of small files needs."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined]
        address = "https://huggingface.co/someone/model"
        if self.path.endswith("/preupload/main"):
            files = [one["path"] for one in json.loads(body)["files"]]
            answer: dict[str, Any] = {
                "files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            }
        elif "/commit/" in self.path:
            answer = {"commitUrl": f"{address}/commit/1", "commitOid": "1", "success": True}
        else:
            answer = {"url": address, "warnings": [], "errors": []}
        self._answer(answer)

    def do_GET(self) -> None:
        self._answer({"id": "someone/model", "sha": "0", "siblings": []})

    def _answer(self, plain: dict[str, Any]) -> None:
        text = json.dumps(plain).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(run: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its settings once."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return subprocess.run(
        [sys.executable, "-m", "edgeprune", "push", str(run), "someone/model"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
    )


@pytest.mark.slow
def test_a_hub_gets_the_very_bytes_of_the_files(run: Path, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{hub.server_port}"
    done = push(run, tmp_path, HF_ENDPOINT=address, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    asked = hub.asked  # type: ignore[attr-defined]
    (commit,) = (body for path, token, body in asked if "/commit/" in path and token == "Bearer hf_secret")
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in map(json.loads, commit.decode().splitlines())
        if line["key"] == "file"
    }
    paths = {"README.md", "report.json", "recipe.toml"}
    assert set(sent) == paths | {f"files/{name}-{TARGET}.tflite" for name in ("dense", "block80")}
    assert all(content == (run / path).read_bytes() for path, content in sent.items())
    assert "Sent to https://huggingface.co/someone/model" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "no token for the hub: hf auth login"),
        ({"HF_TOKEN": "hf_x", "HF_ENDPOINT": "http://127.0.0.1:9"}, "someone/model was not sent: "),
        ({"HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "1"}, "someone/model was not sent: "),
    ],
)
def test_one_message_where_nothing_can_be_sent(
    environment: dict[str, str], words: str, run: Path, tmp_path: Path
) -> None:
    done = push(run, tmp_path, **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_its_package_pip_is_named(run: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as an import of what is not installed fails
    assert main(["push", str(run), "someone/model"]) == 2
    assert "pip install 'edgeprune[hub]'" in capsys.readouterr().err
