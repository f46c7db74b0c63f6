"""Does one job: runs each model on its images, then times all of them in turns.

Started as a file by whatever Python has LiteRT for the processor in question, this one or one under an
emulator; so it imports nothing of this project, and nothing but the standard library, numpy and LiteRT.

    python worker.py JOB.json

A job:

    {"clock": "wall" | "process", "threads": 1, "warmup": 2, "rounds": 10, "result": FILE,
     "tasks": [{"model": FILE, "images": FILE, "count": 2, "outputs": FILE}, ...]}

`images` holds `count` images, float32, little-endian, in the model's own layout; `outputs` gets as many rows
of float32 values. Without rounds nothing is timed. `result` gets, whole or not at all,

    {"version": "LiteRT 2.3.0", "tasks": [{"refused": None | why, "values": 10, "milliseconds": [...],
                                           "load_memory_bytes": None | 9428992}, ...]}

`load_memory_bytes` is how much resident memory loading the model and running its images added at the peak: of
the first model only, since what one has freed the next one takes, and on Linux only, which can tell.

Each step is announced on stdout, `{"step": 3, "of": 24, "task": 1}`: the last one before a crash says where.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def main() -> None:
    """Read the job, do it, write its result."""
    job = json.loads(Path(sys.argv[1]).read_text())
    clock, tasks = CLOCKS[job["clock"]], job["tasks"]
    total = len(tasks) * (1 + job["warmup"] * bool(job["rounds"]) + job["rounds"])
    steps = iter(range(total))

    def announce(task: int) -> None:
        print(json.dumps({"step": next(steps), "of": total, "task": task}), flush=True)  # noqa: T201

    results, models = [], []
    for number, task in enumerate(tasks):
        announce(number)
        try:
            images = np.fromfile(task["images"], "<f4").reshape(task["count"], -1)
            before = resident_bytes() if number == 0 else None
            model = Model(task["model"], job["threads"])
            outputs = np.stack([model.run(image) for image in images])
            added = None if before is None else peak_bytes() - before
            outputs.astype("<f4").tofile(task["outputs"])
            results.append(
                {
                    "refused": None,
                    "values": outputs.shape[1],
                    "milliseconds": [],
                    "load_memory_bytes": added,
                }
            )
            models.append((number, model, images[0]))
        except (RuntimeError, ValueError, MemoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            results.append({"refused": reason, "values": 0, "milliseconds": [], "load_memory_bytes": None})
    for turn in range(job["warmup"] + job["rounds"] if job["rounds"] else 0):
        for number, model, image in models:
            announce(number)
            model.feed(image)
            started = clock()
            model.invoke()
            seconds = clock() - started
            if turn >= job["warmup"]:
                results[number]["milliseconds"].append(1000 * seconds)
    answer = {"version": f"LiteRT {version('ai-edge-litert')}", "tasks": results}
    unfinished = Path(job["result"] + ".tmp")
    unfinished.write_text(json.dumps(answer))
    unfinished.replace(job["result"])


def resident_bytes() -> int | None:
    """Memory of this process now, from which its peak is then counted anew; None where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return status_bytes("VmRSS")


def peak_bytes() -> int:
    """Most memory this process had since `resident_bytes`."""
    return status_bytes("VmHWM")


def status_bytes(name: str) -> int:
    """A figure that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    figures = dict(line.split(":", 1) for line in lines)
    return 1024 * int(figures[name].removesuffix("kB"))


class Model:
    """One image in; quantised ends are fed and read as float32, several outputs one after the other."""

    def __init__(self, path: str, threads: int) -> None:
        self.interpreter = Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()
        inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        if len(inputs) != 1 or not outputs:
            raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs: must be one, and one or more")
        self.input, self.outputs = inputs[0], outputs

    def run(self, image: np.ndarray) -> np.ndarray:
        """One image's values, (values,) float32."""
        self.feed(image)
        self.invoke()
        return np.concatenate([self.values(output) for output in self.outputs])

    def values(self, output: dict[str, Any]) -> np.ndarray:
        """Of one output, (values,) float32."""
        values: np.ndarray = self.interpreter.get_tensor(output["index"]).reshape(-1)
        scale, offset = output["quantization"]
        if values.dtype.kind == "f" or not scale:
            return values.astype(np.float32)
        dequantized: np.ndarray = (values.astype(np.float32) - offset) * np.float32(scale)
        return dequantized

    def feed(self, image: np.ndarray) -> None:
        """Put an image, (n,) float32, where the model reads it."""
        dtype = np.dtype(self.input["dtype"])
        scale, offset = self.input["quantization"]
        if dtype.kind != "f" and scale:
            limits = np.iinfo(dtype)
            image = np.clip(np.rint(image / scale) + offset, limits.min, limits.max)
        self.interpreter.set_tensor(self.input["index"], image.astype(dtype).reshape(self.input["shape"]))

    def invoke(self) -> None:
        """Compute."""
        self.interpreter.invoke()


if __name__ == "__main__":
    main()
