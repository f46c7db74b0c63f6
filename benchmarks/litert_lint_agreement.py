"""Does the linter say what the runtime does? Models x shares of zeros, each timed on the sparse kernels.

    python benchmarks/litert_lint_agreement.py [--size 128] [--out FILE.md] [MODEL ...]

Needs timm for the models that are not torchvision's, and qemu-user for x86 without AVX. Times are processor
seconds under emulation: good for ratios within one run, and for nothing else. Zeros are placed at random in
blocks of one output by four inputs; the dense file has the same graph and the weights before pruning, because
an emulator multiplies zeros more slowly.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters import litert
from converters.litert import repair, storage
from converters.litert.graph import AlignedBuffer, Graph, read, weights
from converters.litert.linter import lint_graph
from converters.targets import Storage

MODELS = (
    *(
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "mobilenet_v2",
        "mnasnet1_0",
        "resnet18",
        "shufflenet_v2_x1_0",
    ),
    *("efficientnet_lite0", "mobilenetv3_small_100", "mobilenetv3_large_100", "tf_mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "mobilenetv2_100", "lcnet_100", "repvit_m0_9"),
)
SHARES = (0.5, 0.7, 0.8)
# Above this ratio to the dense file the sparse kernels ran; the dense ones give 0.8 to 1.2.
SWITCHED = 1.3

TIMER = """
import json, sys, time
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreters, seconds, outputs = [], [[] for _ in sys.argv[1:]], []
for path in sys.argv[1:]:
    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()[0]
    image = np.random.default_rng(0).standard_normal(details["shape"]).astype(np.float32)
    interpreter.set_tensor(details["index"], image)
    interpreter.invoke()
    interpreters.append(interpreter)
for _ in range(3):
    for times, interpreter in zip(seconds, interpreters):
        started = time.process_time()
        interpreter.invoke()
        times.append(time.process_time() - started)
print(json.dumps([float(np.median(times)) for times in seconds]))
"""


@dataclass(frozen=True)
class Result:
    model: str
    share: float
    sparse: bool
    speed: float
    reason: str

    @property
    def agrees(self) -> bool:
        return self.sparse == (self.speed > SWITCHED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--size", type=int, default=128, help="image side in pixels")
    parser.add_argument("--out", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        for result in measure(name, arguments.size):
            results.append(result)
            print(row(result), flush=True)
    agreeing = sum(result.agrees for result in results)
    table = [
        HEADER,
        *map(row, results),
        "",
        f"{agreeing} of {len(results)} verdicts agree; {arguments.size} px.",
    ]
    print(table[-1])
    if arguments.out is not None:
        arguments.out.write_text("\n".join(table) + "\n")


HEADER = "| model | zeros | linter | speed | agrees | reason |\n|---|---|---|---|---|---|"


def row(result: Result) -> str:
    verdict = "sparse" if result.sparse else "dense"
    cells = (
        result.model,
        f"{result.share:.0%}",
        verdict,
        f"{result.speed:.2f}",
        str(result.agrees),
        result.reason,
    )
    return f"| {' | '.join(cells)} |"


def measure(name: str, size: int) -> list[Result]:
    """One model, dense and at each share of zeros."""
    model = build(name)
    content = litert.lower(model, torch.zeros(1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        paths, verdicts = [], []
        for share in (0.0, *SHARES):
            graph = read(content)
            zero_blocks(graph, share)
            repair.repair(graph)
            if share:
                storage.store_weights(graph, Storage.FLOAT32)
                repair.repair_sparse(graph)
            paths.append(Path(folder, f"{share}.tflite"))
            paths[-1].write_bytes(graph.to_bytes())
            verdicts.append(lint_graph(graph, "x86-sparse"))
        seconds = timed(paths)
    return [
        Result(
            name,
            share,
            verdict.sparse,
            seconds[0] / taken,
            str(verdict.problems[0]) if verdict.problems else "",
        )
        for share, verdict, taken in zip(SHARES, verdicts[1:], seconds[1:], strict=True)
    ]


def build(name: str) -> torch.nn.Module:
    """A model by its torchvision or timm name, untrained; batch norms as after training, not all ones."""
    torch.manual_seed(0)
    import torchvision

    if name in torchvision.models.list_models():
        model = torchvision.models.get_model(name, weights=None)
    else:
        import timm

        model = timm.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def zero_blocks(graph: Graph, share: float) -> None:
    """Zero blocks of four inputs in every 1x1 convolution, at random places."""
    random = np.random.default_rng(0)
    for op, tensor in weights(graph):
        weight = graph.constant(tensor).copy()
        if graph.op_name(op) != "CONV_2D" or weight.shape[1:3] != (1, 1):
            continue
        groups = weight.reshape(-1, 4 if weight.shape[3] % 4 == 0 else 1)
        groups[random.permutation(len(groups))[: round(share * len(groups))]] = 0
        buffer = AlignedBuffer()
        buffer.data = np.frombuffer(weight.tobytes(), np.uint8)
        graph.model.buffers[graph.tensors[tensor].buffer] = buffer


def timed(paths: list[Path]) -> list[float]:
    """Median processor seconds of each file, interleaved, on x86 without AVX."""
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if emulator is None:
        sys.exit("needs qemu-user: apt-get install qemu-user-static")
    command = [emulator, "-cpu", "Nehalem", sys.executable, "-c", TIMER, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds: list[float] = json.loads(done.stdout)
    return seconds


if __name__ == "__main__":
    main()
