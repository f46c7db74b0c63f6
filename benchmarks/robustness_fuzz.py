"""atheris, led by coverage, on what our own code reads: flatbuffer, MIL program and weights, strict parsing.

A process for each reader. What it finds is what a reader raises beside our own errors; it is left in the work
folder as `crash-*`, and counted.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 40
LIMIT_MB = 1500
MOST_BYTES = 400_000  # A real program is a quarter of that; cut off, none would be read.
DONE = re.compile(r"Done (\d+) runs in (\d+) second")
COVERED = re.compile(r"cov: (\d+)")


def fuzz(name: str, work: Path) -> dict[str, Any]:
    """Fuzz a reader for some time, from the files of the undisturbed run."""
    folder = work / f"fuzz-{name}"
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for place, content in enumerate(SEEDS[name](work)):
        (corpus / f"seed-{place}").write_bytes(content)
    limits = [f"-max_total_time={SECONDS}", f"-rss_limit_mb={LIMIT_MB}", "-timeout=5"]
    limits.append(f"-max_len={MOST_BYTES}")
    command = [sys.executable, __file__, name, *limits, f"-artifact_prefix={folder}/", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "log").write_text(done.stdout + done.stderr)
    tried, covered = DONE.search(done.stderr), COVERED.findall(done.stderr)
    last = [line for line in done.stderr.splitlines() if "Error" in line]
    return {
        "tried": int(tried.group(1)) if tried else None,
        "covered": int(covered[-1]) if covered else None,
        "status": done.returncode,
        "found": [path.name for kind in ("crash", "timeout", "oom") for path in folder.glob(f"{kind}-*")],
        "told": last[-1][:300] if last and done.returncode else "",
    }


def _flatbuffers(work: Path) -> list[bytes]:
    from converters.targets import Storage
    from tests.support.networks import Network

    found = []
    for storage, zeros in ((Storage.INT8, 0.8), (Storage.FLOAT32, 0.0)):
        net = Network(8)
        x = net.depthwise(net.conv(net.stem(), 16))
        found.append(net.finish(net.linear(net.flatten(net.mean(x)), 4, zeros=zeros), storage))
    return found


def _programs(work: Path) -> list[bytes]:
    from robustness_mutations import MLMODEL

    folder = work / "reference-folder" / "files"
    return [(path / MLMODEL).read_bytes() for path in folder.glob("*.mlpackage")]


def _weights(work: Path) -> list[bytes]:
    import struct

    record = struct.pack("<IIQQ", 0xDEADBEEF, 1, 64, 128).ljust(64, b"\0")
    return [bytes(64) + record + bytes(range(64))]


def _recipes(work: Path) -> list[bytes]:
    return [(work / "reference-folder" / "recipe.toml").read_bytes()]


def _reports(work: Path) -> list[bytes]:
    return [path.read_bytes() for path in (work / "reference-folder" / "rows").glob("*.json")]


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "flatbuffer": _flatbuffers,
    "program": _programs,
    "weights": _weights,
    "recipe": _recipes,
    "row": _reports,
}
TARGETS = tuple(SEEDS)


def reader(name: str) -> Callable[[bytes], object]:
    """What is fuzzed: takes bytes, raises our own errors or nothing."""
    from converters.coreml.blobs import ELEMENT_TYPES, MalformedError, read_blob
    from converters.errors import EdgepruneError

    folder = Path(tempfile.mkdtemp())
    inner: Callable[[bytes], object]
    if name == "flatbuffer":
        from converters.litert import inspection, linter
        from converters.litert.graph import read

        def inner(content: bytes) -> object:
            graph = read(content)
            inspection.layer_facts(graph)
            return linter.lint_graph(graph)

    elif name == "program":
        from coremltools import proto
        from google.protobuf.message import DecodeError

        from converters.coreml.package import Contents
        from converters.coreml.program import read_program

        def inner(content: bytes) -> object:
            spec = proto.Model_pb2.Model()
            try:
                spec.ParseFromString(content)
            except DecodeError:
                return None
            return read_program(Contents(folder, spec, folder))

    elif name == "weights":
        elements = list(ELEMENT_TYPES.values())

        def inner(content: bytes) -> object:
            if len(content) < 4:
                return None
            shape = (content[1] + 1, content[2])
            return read_blob(content[4:], 64 * (content[3] % 4), elements[content[0] % len(elements)], shape)

    elif name == "recipe":
        from edgeprune import recipe

        def inner(content: bytes) -> object:
            path = folder / "recipe.toml"
            path.write_bytes(content)
            return recipe.read(path)

    else:
        from edgeprune.evaluation.records import Row, from_plain
        from edgeprune.parsing import read_json

        def inner(content: bytes) -> object:
            path = folder / "row.json"
            path.write_bytes(content)
            return from_plain(Row, read_json(path, "advice"), "row")

    def read_one(content: bytes) -> None:
        try:
            inner(content)
        except (EdgepruneError, MalformedError):
            return

    return read_one


def main() -> None:
    """In the process that atheris runs in."""
    import atheris

    sys.path.insert(0, str(Path(__file__).parents[1]))
    ours = ["converters", "edgeprune"]
    with atheris.instrument_imports(include=ours, enable_loader_override=False):
        read_one = reader(sys.argv[1])
    atheris.Setup([sys.argv[0], *sys.argv[2:]], read_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
