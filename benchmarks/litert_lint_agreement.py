"""Does the linter say what the runtime does? Models x shares of zeros, each timed on the sparse kernels.

    python benchmarks/litert_lint_agreement.py --work FOLDER [MODEL ...]     # measure; what is there is kept
    python benchmarks/litert_lint_agreement.py --work FOLDER --out docs/results/litert_lint

Needs qemu-user for x86 without AVX. Two witnesses for
each verdict. Speed: against a dense file of the same graph with the weights before pruning, processor time
under emulation, good for ratios within one run. Numbers: dense kernels give those of a dense file with the
same zeros to the last bit, sparse kernels add in another order. Zeros are at random, in blocks of one output
by four inputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters import litert
from converters.litert import mirror, repair, storage
from converters.litert.graph import Graph, read, weights
from converters.litert.linter import lint_graph
from converters.runtimes.environments import runtime
from converters.runtimes.running import FileRun, RunResult, run_files
from converters.targets import Storage

MODELS = (
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v2",
    "mnasnet1_0",
    "efficientnet_b0",
    "resnet18",
    "shufflenet_v2_x1_0",
    "timm/efficientnet_lite0",
    "timm/mobilenetv3_small_100",
    "timm/mobilenetv3_large_100",
    "timm/mobilenetv2_100",
    "timm/lcnet_100",
    "timm/mobilenetv4_conv_small",
    "timm/repvit_m0_9",
    "timm/tf_mobilenetv3_small_100",
    "timm/tf_efficientnet_lite0",
)
SHARES = (0.5, 0.7, 0.8)
# Above this ratio to the dense file the sparse kernels ran; the dense ones give 0.8 to 1.2.
SWITCHED = 1.3
ROUNDS = 5


@dataclass(frozen=True)
class Result:
    """One model at one share of zeros."""

    model: str
    share: float
    verdict: bool
    reason: str
    mirrored: bool
    speed: float
    same_bits: bool
    difference: float

    @property
    def timed(self) -> bool:
        return self.speed > SWITCHED

    @property
    def agrees(self) -> bool:
        return self.verdict == self.timed == (not self.same_bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--size", type=int, default=128, help="image side in pixels")
    parser.add_argument("--work", type=Path, required=True, help="keeps files and what was measured")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json from what is in the work folder")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in arguments.models:
        kept = arguments.work / f"{name.replace('/', '_')}-{arguments.size}.json"
        if not kept.exists():
            measured = measure(name, arguments.size, arguments.work)
            kept.write_text(json.dumps([dataclasses.asdict(result) for result in measured]))
        found = [Result(**entry) for entry in json.loads(kept.read_text())]
        print("\n".join(map(row, found)), flush=True)
        results += found
    print(summary(results, arguments.size))
    if arguments.out is not None:
        write(results, arguments.size, arguments.out)


def measure(name: str, size: int, work: Path) -> list[Result]:
    """One model, dense and at each share of zeros."""
    content = litert.lower(build(name), torch.zeros(1, 3, size, size))
    stem = name.replace("/", "_")
    paths = {"unpruned": saved(pruned(content, 0.0), work / f"{stem}-unpruned.tflite")}
    verdicts = {}
    for share in SHARES:
        graph = pruned(content, share)
        paths[f"dense {share}"] = saved(graph, work / f"{stem}-{share}-dense.tflite")
        storage.store_weights(graph, Storage.FLOAT32)
        repair.repair_sparse(graph)
        paths[f"sparse {share}"] = saved(graph, work / f"{stem}-{share}-sparse.tflite")
        mirrored = any(graph.op_name(op) == "REVERSE_V2" for op in graph.ops)
        verdicts[share] = lint_graph(graph, "x86-sparse"), mirrored
    image = np.random.default_rng(0).standard_normal((1, size, size, 3)).astype(np.float32)
    once = on_sparse_kernels([FileRun(path, image) for path in paths.values()], rounds=0)
    outputs = {key: answer.outputs for key, answer in zip(paths, once.answers, strict=True)}
    timed = ["unpruned", *(f"sparse {share}" for share in SHARES)]
    ran = on_sparse_kernels([FileRun(paths[key], image) for key in timed], rounds=ROUNDS)
    medians = [float(np.median(answer.milliseconds)) for answer in ran.answers]
    for path in paths.values():
        path.unlink()
    results = []
    for share, median in zip(SHARES, medians[1:], strict=True):
        verdict, mirrored = verdicts[share]
        sparse, dense = outputs[f"sparse {share}"], outputs[f"dense {share}"]
        results.append(
            Result(
                model=name,
                share=share,
                verdict=verdict.sparse,
                reason=str(verdict.problems[0]) if verdict.problems else "",
                mirrored=mirrored,
                speed=medians[0] / median,
                same_bits=bool(np.array_equal(sparse, dense)),
                difference=float(np.abs(sparse - dense).max() / np.abs(dense).max()),
            )
        )
    return results


def on_sparse_kernels(tasks: Sequence[FileRun], rounds: int) -> RunResult:
    return run_files(tasks, runtime("x86-sparse"), rounds=rounds, warmup=1)


def build(name: str) -> torch.nn.Module:
    """A torchvision model by name, or timm/NAME, untrained; batch norms as after training, not all ones."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        import timm

        model = timm.create_model(name.removeprefix("timm/"), pretrained=False)
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def pruned(content: bytes, share: float) -> Graph:
    """The repaired graph with zeros in blocks of four inputs in every 1x1 convolution, at random places."""
    graph = read(content)
    random = np.random.default_rng(0)
    for op, tensor in weights(graph):
        weight = graph.constant(tensor).copy()
        if graph.op_name(op) != "CONV_2D" or weight.shape[1:3] != (1, 1):
            continue
        groups = weight.reshape(-1, 4 if weight.shape[3] % 4 == 0 else 1)
        groups[random.permutation(len(groups))[: round(share * len(groups))]] = 0
        graph.replace_constant(tensor, weight)
    repair.repair(graph)
    mirror.even_padding(graph)  # For the dense files too, whose bits are compared.
    return graph


def saved(graph: Graph, path: Path) -> Path:
    storage.drop_unused(graph)
    path.write_bytes(graph.to_bytes())
    return path


HEADER = """\
| model | zeros | linter | speed | timing | same bits as dense | agrees | difference | what the linter says |
|---|--:|---|--:|---|---|---|--:|---|"""


def row(result: Result) -> str:
    says = result.reason or ("runs on the mirrored image" if result.mirrored else "")
    cells = (
        result.model,
        f"{result.share:.0%}",
        kernels(result.verdict),
        f"{result.speed:.2f}",
        kernels(result.timed),
        "yes" if result.same_bits else "no",
        "yes" if result.agrees else "**NO**",
        f"{result.difference:.0e}",
        says.replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


def kernels(sparse: bool) -> str:
    return "sparse" if sparse else "dense"


def summary(results: Sequence[Result], size: int) -> str:
    agreeing = sum(result.agrees for result in results)
    models = len({result.model for result in results})
    return f"{agreeing} of {len(results)} verdicts agree with both witnesses: {models} models at {size} px."


def write(results: Sequence[Result], size: int, out: Path) -> None:
    """OUT.md for people, OUT.json for machines."""
    text = f"""\
# The linter against the runtime

{summary(results, size)}

Written by `benchmarks/litert_lint_agreement.py`. Untrained models; {SHARES[0]:.0%}, {SHARES[1]:.0%} and
{SHARES[2]:.0%} of the weights of all 1x1 convolutions zero, in blocks of one output by four inputs, the other
layers dense. LiteRT on x86 without AVX, emulated by qemu-user on {platform.machine()}: its sparse kernels.
Speed is against the dense file of the unpruned weights: {ROUNDS} interleaved runs, median processor time;
above {SWITCHED} counts as sparse. The second witness is independent of the clock: dense kernels give the
numbers of a dense file with the same zeros to the last bit. "difference" is to that file, relative to its
largest output.

{HEADER}
"""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(text + "\n".join(map(row, results)) + "\n", encoding="utf-8")
    entries = [{**dataclasses.asdict(result), "agrees": result.agrees} for result in results]
    out.with_suffix(".json").write_text(
        json.dumps({"size_px": size, "rounds": ROUNDS, "results": entries}, indent=1)
    )


if __name__ == "__main__":
    main()
