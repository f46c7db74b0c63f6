"""What is known of a file's ops as Model Explorer's node data: JSON that it lays over the file's graph.

Each overlay is a file of its own: zeros, bits for each weight, what LiteRT's GPU does with each op and, where
a torch model is at hand, how far each result is from it. Nodes are named by the tensors that they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.accelerators import Outcome
from converters.litert.accelerators import examine
from converters.litert.graph import Graph, weights
from converters.litert.inspection import layer_facts

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

GRAPH = "main"
COLOURS = {Outcome.RUNS: "#b7e1cd", Outcome.FALLS_BACK: "#f4c7c3", Outcome.UNKNOWN: "#eeeeee"}
WHITE, BLUE, ORANGE, RED = "#ffffff", "#7baaf7", "#fcad70", "#ee675c"


def overlays(graph: Graph) -> dict[str, Any]:
    """The overlays by name, as plain data for JSON."""
    layers = list(zip(weights(graph), layer_facts(graph), strict=True))
    zeros = {_node(graph, op): layer.zero_fraction for (op, _), layer in layers}
    bits = {_node(graph, op): layer.bits_per_weight for (op, _), layer in layers}
    gpu, _ = examine(graph)
    verdicts = {_node(graph, op): verdict for op, verdict in zip(graph.ops, gpu.verdicts, strict=True)}
    return {
        "zeros": {GRAPH: {"name": "zeros", **_graded(zeros, BLUE)}},
        "bits": {GRAPH: {"name": "bits per weight", **_graded(bits, ORANGE)}},
        gpu.name: {
            GRAPH: {
                "name": gpu.name,
                "results": {
                    node: {
                        "value": verdict.change or verdict.outcome.value,
                        "bgColor": COLOURS[verdict.outcome],
                    }
                    for node, verdict in verdicts.items()
                },
            }
        },
    }


def errors(tensors: Mapping[str, np.ndarray], model: nn.Module, inputs: np.ndarray) -> dict[str, Any]:
    """The overlay of how far each node is from the torch model, over the model's largest value there.

    Args:
        tensors: what the file computes for an image, by node.
        model: in eval mode.
        inputs: (1, channels, height, width), the same image as the model takes it.
    """
    from converters.agreement import errors_by_tensor

    off = errors_by_tensor(model, inputs, list(tensors.values()))
    known = {node: error for node, error in zip(tensors, off, strict=True) if error is not None}
    return {"error": {GRAPH: {"name": "error to the torch model", **_graded(known, RED)}}}


def _graded(values: dict[str, float], colour: str) -> dict[str, Any]:
    """Numbers, coloured from the least to the most."""
    return {
        "results": {node: {"value": value} for node, value in values.items()},
        "gradient": [{"stop": 0, "bgColor": WHITE}, {"stop": 1, "bgColor": colour}],
    }


def _node(graph: Graph, op: Any) -> str:
    return graph.name(next(int(t) for t in op.outputs if t >= 0))
