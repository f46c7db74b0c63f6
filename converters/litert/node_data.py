"""What is known of a file's ops as Model Explorer's node data: JSON that it lays over the file's graph.

Each overlay is a file of its own: zeros, bits for each weight, and what LiteRT's GPU does with each op. Nodes
are named by the tensors that they compute.
"""

from __future__ import annotations

from typing import Any

from converters.accelerators import Outcome
from converters.litert.accelerators import examine
from converters.litert.graph import Graph, weights
from converters.litert.inspection import layer_facts

GRAPH = "main"
COLOURS = {Outcome.RUNS: "#b7e1cd", Outcome.FALLS_BACK: "#f4c7c3", Outcome.UNKNOWN: "#eeeeee"}
WHITE, BLUE, ORANGE = "#ffffff", "#7baaf7", "#fcad70"


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


def _graded(values: dict[str, float], colour: str) -> dict[str, Any]:
    """Numbers, coloured from the least to the most."""
    return {
        "results": {node: {"value": value} for node, value in values.items()},
        "gradient": [{"stop": 0, "bgColor": WHITE}, {"stop": 1, "bgColor": colour}],
    }


def _node(graph: Graph, op: Any) -> str:
    return graph.name(next(int(t) for t in op.outputs if t >= 0))
