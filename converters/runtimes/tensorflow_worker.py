"""Does the jobs of `worker.py` on TensorFlow's own interpreter with its reference kernels; never timed.

Those kernels are plain loops, written apart from XNNPACK: a second opinion on what a file computes.
TensorFlow is an extra, and is imported in this process only.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    """Read the job, do it, write its result."""
    import tensorflow as tf

    job = json.loads(Path(sys.argv[1]).read_text())
    results = []
    for number, task in enumerate(job["tasks"]):
        sys.stdout.write(json.dumps({"step": number, "of": len(job["tasks"]), "task": number}) + "\n")
        sys.stdout.flush()
        try:
            outputs = _run(tf, task)
            outputs.astype("<f4").tofile(task["outputs"])
            results.append({"refused": None, "values": outputs.shape[1], "milliseconds": []})
        except (RuntimeError, ValueError, MemoryError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            results.append({"refused": reason, "values": 0, "milliseconds": []})
    unfinished = Path(job["result"] + ".tmp")
    unfinished.write_text(json.dumps({"version": f"TensorFlow {tf.__version__}", "tasks": results}))
    unfinished.replace(job["result"])


def _run(tf: Any, task: dict[str, Any]) -> np.ndarray:
    """A task's outputs, (n, values)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow announces that LiteRT will replace this interpreter.
        interpreter = tf.lite.Interpreter(
            model_path=task["model"],
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_REF,
        )
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    if {np.dtype(end["dtype"]).kind for end in (taken, given)} != {"f"}:
        raise ValueError("it takes or gives integers: only files with float32 ends are run here")
    outputs = []
    for image in np.fromfile(task["images"], "<f4").reshape(task["count"], *taken["shape"]):
        interpreter.set_tensor(taken["index"], image)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(given["index"]).reshape(-1))
    return np.stack(outputs)


if __name__ == "__main__":
    main()
