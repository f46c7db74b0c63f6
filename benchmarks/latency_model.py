"""What ops cost on each runtime, fitted on small random networks, and checked on whole models.

    python benchmarks/latency_model.py --work FOLDER [--runtimes x86-sparse arm64 browser] [--networks 110]

Writes `converters/runtimes/latency.json`, which allocations for a time read, and latency_model.md and .json
into docs/results (--out). Files and timings are kept in FOLDER: a stopped run goes on.

Whole models are none that anything was fitted on; each is timed beside some of the small networks, and its
time told in units of theirs, since an emulator, or a busy machine, has no fixed pace.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from litert_files import RUNTIME_NAMES, build, files, made_by, percent, provenance, pruned, table, write

from converters.errors import UserError
from converters.files import write_text
from converters.litert.graph import Graph, read_file
from converters.litert.linter import lint_graph
from converters.runtimes import micro
from converters.runtimes.environments import runtime
from converters.runtimes.latency import FITTED, LatencyModel, fit, kept_weights, runs_sparse, works
from converters.runtimes.running import FileRun, run_files
from edgeprune.pipeline.environment import processor
from edgeprune.pruning import Block

MODELS = (
    "mobilenetv1_100", "mobilenetv2_050", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100",
    "mobilenetv4_conv_small", "mnasnet_small", "semnasnet_075", "spnasnet_100", "fbnetc_100", "lcnet_050",
    "lcnet_100", "hardcorenas_a", "tf_efficientnet_lite0", "efficientnet_b0",
)  # fmt: skip
ZEROS, PATTERN = 0.8, Block(1, 4)
SIZE_PX = 224
WIDE_NETWORKS, WIDE_SEEDS = 50, 1000  # How many, from which seed.
WALL_ROUNDS = 15  # Where the clock is the wall's.
REFERENCES = 6  # Small networks timed beside every whole model.
CONVOLUTIONS_EVERY = 5  # Networks with 3x3 convolutions over all channels among them.
LIMIT_S = 3000.0
# Found by hand, which this benchmark does not repeat.
REMARKS = """\
- An emulator counts instructions, not memory: ratios within one run, and no promise for a phone.
- **mobilenetv4_conv_small with zeros is told wrong for the browser**, and is twice as slow there as dense. It
  begins with two 3x3 convolutions over all channels, which are written as 1x1 convolutions over nine times
  the channels for sparse kernels to take them. These have no zeros, and read maps of 4 to 14 MB again and
  again: no work for an emulator, much for a memory. Cut off before the layers from which on zeros are enough
  for sparse kernels, it keeps its 3x3 convolutions and takes 8 ms, one block later 22.
- Fitted on the small networks alone, the browser's errors were 7.3 % (median) and 52 %; with others of larger
  maps beside them 7.0 and 47 %; with others of more weights, as now, 5.1 and 50 % in a first run, the next
  12 %. Terms for maps or weights above a cache's size did not help.
""".splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to keep files and timings in")
    parser.add_argument("--runtimes", nargs="+", default=["x86-sparse", "arm64"], choices=RUNTIME_NAMES)
    parser.add_argument("--networks", type=int, default=110)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="of timm")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    small = networks(options.work / "micro", range(options.networks), micro.SMALL)
    checked = {}
    for name in options.runtimes:
        fitted_to, rounds = small, options.rounds
        if not runtime(name).emulated:
            seeds = range(WIDE_SEEDS, WIDE_SEEDS + WIDE_NETWORKS)
            fitted_to, rounds = [*small, *networks(options.work / "wide", seeds, micro.WIDE)], WALL_ROUNDS
        fitted, within = fitted_on(name, fitted_to, rounds, options.work)
        keep(fitted)
        rows = [check(fitted, model, small, rounds, options.work) for model in options.models]
        checked[name] = {"within": within, "models": rows}
    facts = provenance()
    plain = {
        "schema": 1,
        **facts,
        "networks": options.networks,
        "rounds": options.rounds,
        "runtimes": checked,
    }
    write(options.out, "latency_model", page(facts, plain), plain)


def networks(folder: Path, seeds: Iterable[int], sizes: micro.Sizes) -> list[Path]:
    """The files of one network a seed, dense, and sparse where sparse kernels take them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in seeds:
        pair = micro.pair(seed, convolutions=seed % CONVOLUTIONS_EVERY == 0, sizes=sizes)
        for name, data in (("dense", pair.dense), ("sparse", pair.sparse)):
            path = folder / f"{seed}-{name}.tflite"
            if not path.exists():
                path.write_bytes(data)
            if name == "dense" or lint_graph(read_file(path), "arm64").sparse:
                found.append(path)
    return found


def fitted_on(
    name: str, paths: Sequence[Path], rounds: int, work: Path
) -> tuple[LatencyModel, dict[str, float]]:
    """The model of a runtime, and its errors on the networks it was fitted on."""
    version, fastest = timed(paths, name, rounds, work / f"{name}-micro.json")
    graphs = [read_file(path) for path in paths]
    done = [_work_of(graph) for graph in graphs]
    where = runtime(name)
    model = LatencyModel(
        name,
        version,
        processor(),
        "processor time" if where.emulated else "wall time",
        fit(done, fastest),
    )
    errors = np.abs(np.array([model.of(graph) for graph in graphs]) / fastest - 1)
    return model, {"files": len(paths), "median": float(np.median(errors)), "worst": float(errors.max())}


def _work_of(graph: Graph) -> Any:
    work = works(graph, sparse=runs_sparse(graph))
    return work, kept_weights(graph, work)


def keep(model: LatencyModel) -> None:
    """Into the file that allocations read, beside the other runtimes."""
    plain = json.loads(FITTED.read_text()) if FITTED.exists() else {"schema": 1, "runtimes": {}}
    plain["runtimes"][model.runtime] = dataclasses.asdict(model)
    write_text(FITTED, json.dumps(plain, indent=1, sort_keys=True) + "\n")


def check(model: LatencyModel, name: str, small: Sequence[Path], rounds: int, work: Path) -> dict[str, Any]:
    """Predicted and measured times of a model, dense and sparse, in units of the reference networks."""
    folder = work / name
    paths = [
        *files(
            lambda: build(f"timm/{name}"), folder, SIZE_PX, {"dense": {"target": "litert-arm64"}}
        ).values(),
        *files(
            lambda: pruned(f"timm/{name}", PATTERN, ZEROS),
            folder,
            SIZE_PX,
            {"sparse": {"target": "litert-arm64"}},
        ).values(),
    ]
    references = list(small[:REFERENCES])
    _, fastest = timed([*paths, *references], model.runtime, rounds, folder / f"{model.runtime}.json")
    pace = float(np.median(fastest[2:] / [model.of(read_file(path)) for path in references]))
    row: dict[str, Any] = {"model": name}
    for kind, path, measured in zip(("dense", "sparse"), paths, fastest[:2], strict=True):
        graph = read_file(path)
        try:
            predicted = model.of(graph) * pace
            row[kind] = {
                "predicted_ms": predicted,
                "measured_ms": float(measured),
                "error": predicted / float(measured) - 1,
                "sparse_kernels": runs_sparse(graph),
            }
        except UserError as error:
            row[kind] = {"reason": str(error)}
    print(name, json.dumps(row), flush=True)
    return row


def timed(paths: Sequence[Path], name: str, rounds: int, kept: Path) -> tuple[str, np.ndarray]:
    """Version of the runtime, and the fastest of so many runs of each file, (files,) ms; kept.

    The fastest: whatever else the machine does only ever adds to a time.
    """
    if not kept.exists():
        tasks = [FileRun(path, _image(path)) for path in paths]
        ran = run_files(tasks, runtime(name), rounds=rounds, warmup=1, limit_s=LIMIT_S)
        refused = [
            f"{task.path}: {a.refused}" for task, a in zip(tasks, ran.answers, strict=True) if a.refused
        ]
        if refused:
            raise SystemExit("\n".join(refused))
        write_text(
            kept, json.dumps({"version": ran.version, "milliseconds": [a.milliseconds for a in ran.answers]})
        )
    plain = json.loads(kept.read_text())
    return plain["version"], np.array([min(times) for times in plain["milliseconds"]])


def _image(path: Path) -> np.ndarray:
    graph = read_file(path)
    shape = graph.shape(int(graph.subgraph.inputs[0]))
    return np.random.default_rng(0).random(shape, np.float32)


def page(facts: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    """For people."""
    lines = [
        "# Predicted times of LiteRT files",
        "",
        "What ops cost is fitted on small random networks; here it predicts whole models of timm that "
        f"nothing was fitted on, at {SIZE_PX}x{SIZE_PX} px: dense, and with {percent(ZEROS)} zeros in 1x4 "
        "blocks of all 1x1 convolutions. Predicted and measured in ms, and the error.",
        "",
    ]
    for name, found in plain["runtimes"].items():
        errors = np.array(
            [
                abs(row[kind]["error"])
                for row in found["models"]
                for kind in ("dense", "sparse")
                if "error" in row[kind]
            ]
        )
        lines += [
            f"## {name}",
            "",
            f"Median error {percent(float(np.median(errors)))}, worst {percent(float(errors.max()))}, of "
            f"{len(errors)} files; on the {found['within']['files']} small ones it was fitted on "
            f"{percent(found['within']['median'])}.",
            "",
            *table(
                ["model", "dense: predicted", "measured", "error", "sparse: predicted", "measured", "error"],
                [[row["model"], *_cells(row["dense"]), *_cells(row["sparse"])] for row in found["models"]],
            ),
            "",
        ]
    return [
        *lines,
        made_by(facts),
        "",
        f"- The fastest of {plain['rounds']} runs, processor time where emulated, of {WALL_ROUNDS} in the "
        "browser: a busy machine only adds.",
        f"- Each model is timed beside {REFERENCES} small networks; the pace of that run is theirs.",
        *REMARKS,
    ]


def _cells(found: dict[str, Any]) -> list[str]:
    if "error" not in found:
        return ["–", "–", found["reason"].split(":")[0]]
    star = "" if found["sparse_kernels"] or "sparse" not in found else " (dense kernels)"
    digits = 0 if found["measured_ms"] >= 100 else 1
    return [
        f"{found['predicted_ms']:.{digits}f}{star}",
        f"{found['measured_ms']:.{digits}f}",
        f"{100 * found['error']:+.1f} %",
    ]


if __name__ == "__main__":
    main()
