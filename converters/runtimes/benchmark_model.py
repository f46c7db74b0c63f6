"""LiteRT's own benchmark_model for Android: a path that is given, or downloaded once and checked.

What is downloaded is a release's, which is not written over; it is kept beside what the other runtimes need.
Its length and its digest are those that others published of it. Only the first part of the digest is known
here (it was published shortened), so that it tells a damaged download or another build, and is no protection
against one made to match; a measurement's JSON has the whole digest of what was used."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from converters.errors import UserError
from converters.facts import sha256
from converters.files import explained, replacing
from converters.runtimes.environments import prepared

TOOL = "benchmark_model"
VERSION = "2.2.0"
SECONDS_TO_ANSWER = 30.0
CHUNK_BYTES = 1 << 16
HELP = "or give one with --benchmark-model PATH (ai.google.dev/edge/litert has them), or put it into {}"


@dataclass(frozen=True)
class Release:
    """A build that can be downloaded.

    Attributes:
        url: of it; $EDGEPRUNE_BENCHMARK_MODEL_URL names a mirror.
        bytes: of the program.
        digest: SHA-256, or how it begins.
    """

    url: str
    bytes: int
    digest: str


# Both as people who timed phones with it wrote them down in September 2026.
ARM64 = Release(
    f"https://storage.googleapis.com/litert/binaries/{VERSION}/android_arm64/{TOOL}", 8_020_656, "f3729eaf"
)


def find_tool(given: Path | None, release: Release = ARM64) -> Path:
    """The benchmark_model to use; downloaded where it is neither given nor there.

    Raises:
        UserError: there is none, and it cannot be downloaded, or what comes is another one.
    """
    own = prepared("android") / TOOL
    if given is not None and not given.is_file():
        raise UserError(f"{given}: no such file: leave --benchmark-model out, {HELP.format(own)}")
    if given is not None or own.is_file():
        return given or own
    return download(own, release)


def download(path: Path, release: Release) -> Path:
    """Fetch a release's program, check it, and put it at a path.

    Raises:
        UserError: it cannot be fetched, or is not the one that is expected; nothing is kept then.
    """
    url = os.environ.get("EDGEPRUNE_BENCHMARK_MODEL_URL", release.url)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as work:
        try:
            _fetch(url, work, release.bytes)
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
            raise UserError(
                f"{TOOL} is not there, and {url} cannot be fetched ({reason}): go online once, "
                f"{HELP.format(path)}"
            ) from None
        found, size = sha256(work), work.stat().st_size
        if size != release.bytes or not found.startswith(release.digest):
            raise UserError(
                f"what {url} gives is not {TOOL} {VERSION}: {size:,} bytes, SHA-256 {found}, expected "
                f"{release.bytes:,} and {release.digest}...: nothing is kept; try again, {HELP.format(path)}"
            )
        work.chmod(0o755)
    return path


def _fetch(url: str, target: Path, most_bytes: int) -> None:
    """Write what an address gives, one byte more than expected at the most."""
    with urllib.request.urlopen(url, timeout=SECONDS_TO_ANSWER) as answer, target.open("wb") as content:
        left = most_bytes + 1
        while left and (chunk := answer.read(min(CHUNK_BYTES, left))):
            content.write(chunk)
            left -= len(chunk)
