"""How long a `.tflite` file takes on a runtime, from its ops alone: predicted, not run.

The time of a network is the sum of its ops' times, and that of an op a sum of terms in what it does: numbers
multiplied, read, written. What each costs depends on the runtime and on whether the op runs on dense or on
sparse kernels; it is fitted, with no cost below 0, on small random networks that are run there
(`converters.runtimes.micro`). On sparse kernels only weights that are not zero are multiplied, and a map is
gone through in strips of 32 pixels, then 16, 8, 4, 2 and 1 for what is left: every weight begins each anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from converters.errors import ToolError, UserError
from converters.litert.graph import Graph, read, read_file, weights
from converters.litert.kernels import Node, nodes
from converters.litert.linter import THRESHOLD, has_sparse_weight, sparse_parts
from converters.litert.repair import set_up_for_sparse_kernels

Numbers = NDArray[np.float64]

FITTED = Path(__file__).with_name("latency.json")
STRIP = 32  # Pixels that the sparse kernels go through at a time.
DENSE, SPARSE = "dense", "sparse"


@dataclass(frozen=True)
class Work:
    """What one op does.

    Attributes:
        kind: of op and kernel, e.g. "conv1x1, sparse".
        amounts: how much of each term, in the order of `terms_of(kind)`.
        weight: the stored tensor of a 1x1 convolution's weight; None for other ops.
        per_kept: of a sparse 1x1 convolution, how much of each term every weight that is not zero adds;
            `amounts` then leaves them out.
    """

    kind: str
    amounts: tuple[float, ...]
    weight: int | None = None
    per_kept: tuple[float, ...] | None = None


@dataclass(frozen=True)
class LatencyModel:
    """What ops cost on one runtime.

    Attributes:
        runtime: name in `converters.runtimes.environments`.
        version: of what was measured.
        processor: likewise.
        clock: "processor time" of an emulator, only good for ratios, or "wall time".
        milliseconds: of each term of each kind of work.
    """

    runtime: str
    version: str
    processor: str
    clock: str
    milliseconds: Mapping[str, tuple[float, ...]]

    def of(self, graph: Graph) -> float:
        """Milliseconds of one run of a file, on sparse kernels where it takes them.

        Raises:
            UserError: an op that nothing was fitted for.
        """
        sparse = runs_sparse(graph)
        work = works(graph, sparse=sparse)
        kept = kept_weights(graph, work)
        return float(sum(self.of_work(one, kept.get(one.weight, 0)) for one in work))

    def of_work(self, work: Work, kept: float = 0.0) -> float:
        """Milliseconds of one op with so many weights that are not zero."""
        cost = np.array(self._cost(work.kind))
        return float(cost @ np.array(work.amounts) + kept * self.per_kept(work))

    def per_kept(self, work: Work) -> float:
        """Milliseconds that each weight which is not zero adds to an op; 0 where zeros are multiplied too."""
        return 0.0 if work.per_kept is None else float(np.dot(self._cost(work.kind), work.per_kept))

    def _cost(self, kind: str) -> tuple[float, ...]:
        if kind not in self.milliseconds:
            known = "; ".join(sorted(self.milliseconds))
            raise UserError(f"the time of {kind} on {self.runtime} is not known: it was fitted for {known}")
        return self.milliseconds[kind]


@dataclass(frozen=True)
class TimeModel:
    """Predicts the time of a network on one runtime for any zeros in its 1x1 convolutions.

    Attributes:
        runtime: where.
        layers: names of the 1x1 convolutions on sparse kernels.
        counts: weights of each, (layers,).
        dense_ms: of the network on dense kernels.
        base_ms: on sparse kernels, of everything that no zeros change.
        per_kept_ms: of each weight that is not zero, (layers,).
    """

    runtime: str
    layers: tuple[str, ...]
    counts: Numbers
    dense_ms: float
    base_ms: float
    per_kept_ms: Numbers

    def milliseconds(self, kept: ArrayLike) -> Numbers:
        """Time for numbers of weights that are not zero, (..., layers) -> (...).

        With two thirds of zeros or fewer the runtime takes its dense kernels.
        """
        kept = np.asarray(kept, dtype=np.float64)
        total = self.counts.sum()
        sparse = self.base_ms + kept @ self.per_kept_ms
        enough = (total - kept.sum(axis=-1)) * THRESHOLD[1] > total * THRESHOLD[0]
        return np.asarray(np.where(enough, sparse, self.dense_ms))


def time_model(model: LatencyModel, graph: Graph, names: Sequence[str]) -> TimeModel:
    """The time of a network whose dense file is at hand.

    Args:
        model: of the runtime.
        graph: the file, with dense weights.
        names: of its weighted layers, in the order they run (`Converted.layers`).

    Raises:
        UserError: sparse kernels do not take the network, whatever its zeros; an op that nothing is fitted
            for.
    """
    dense = works(graph, sparse=False)
    graph = read(graph.to_bytes(), graph.source)
    set_up_for_sparse_kernels(graph)  # As a file with zeros is.
    if not sparse_parts(graph):
        raise UserError("sparse kernels do not take this network: zeros do not change its time")
    work = works(graph, sparse=True)
    prunable = [one for one in work if one.per_kept is not None]
    named = dict(zip(_weights_in_order(graph), names, strict=True))
    return TimeModel(
        model.runtime,
        tuple(named[one.weight] for one in prunable if one.weight is not None),
        np.array([float(graph.constant(one.weight).size) for one in prunable if one.weight is not None]),
        sum(model.of_work(one) for one in dense),
        sum(model.of_work(one) for one in work),
        np.array([model.per_kept(one) for one in prunable]),
    )


def time_models(runtimes: Sequence[str], path: Path, names: Sequence[str]) -> dict[str, TimeModel]:
    """The same of a file on disk, for several runtimes by name.

    Raises:
        UserError: see `time_model` and `latency_model`; not a `.tflite` file.
    """
    graph = read_file(path)
    return {name: time_model(latency_model(name), graph, names) for name in runtimes}


def runs_sparse(graph: Graph) -> bool:
    """Whether a runtime with sparse kernels takes them for this file."""
    if not has_sparse_weight(graph):
        return False
    inside = [node for part in sparse_parts(graph) for node in part if _is_1x1(graph, node)]
    sizes = sum(_size(graph, node) for node in inside)
    zeros = sizes - sum(_kept(graph, node) for node in inside)
    return zeros * THRESHOLD[1] > sizes * THRESHOLD[0]


def works(graph: Graph, *, sparse: bool) -> list[Work]:
    """What each op of a network does, and what running it at all costs.

    Args:
        graph: a file of float32 maps.
        sparse: whether its sparse parts, if there are any, run on sparse kernels.
    """
    inside = {node.index for part in sparse_parts(graph) for node in part} if sparse else set()
    found = [
        _work(graph, node, SPARSE if node.index in inside else DENSE)
        for node in nodes(graph)
        if node.kind != "RESHAPE"
    ]
    return [Work("run", (1.0,)), *found]


def kept_weights(graph: Graph, work: Iterable[Work]) -> dict[int | None, int]:
    """By stored tensor, how many weights of the 1x1 convolutions are not zero."""
    stored = {one.weight for one in work if one.weight is not None}
    return {tensor: int(np.count_nonzero(graph.stored_values(tensor))) for tensor in stored}


def strips(pixels: int) -> int:
    """How many strips the sparse kernels divide a map into.

    >>> strips(64), strips(49)
    (2, 3)
    """
    return pixels // STRIP + (pixels % STRIP).bit_count()


def fit(
    networks: Sequence[tuple[Sequence[Work], Mapping[int | None, int]]], milliseconds: ArrayLike
) -> dict[str, tuple[float, ...]]:
    """Costs of all terms, from what networks do and how long they took; each network counts alike.

    Args:
        networks: what each does, and the weights it keeps (`works`, `kept_weights`).
        milliseconds: (networks,), each above 0.

    Raises:
        ToolError: fewer networks than there are terms.
    """
    from scipy.optimize import nnls

    lengths = {one.kind: len(one.amounts) for work, _ in networks for one in work}
    places, columns = {}, 0
    for kind, length in sorted(lengths.items()):
        places[kind] = slice(columns, columns + length)
        columns += length
    if columns > len(networks):
        raise ToolError(f"{len(networks)} networks are too few to fit {columns} costs on")
    amounts = np.zeros((len(networks), columns))
    for row, (work, kept) in zip(amounts, networks, strict=True):
        for one in work:
            row[places[one.kind]] += one.amounts
            if one.per_kept is not None:
                row[places[one.kind]] += kept[one.weight] * np.array(one.per_kept)
    times = np.asarray(milliseconds, dtype=np.float64)
    largest = np.maximum(amounts.max(axis=0), 1)  # Terms are of very different sizes.
    found, _ = nnls(amounts / largest / times[:, None], np.ones(len(times)))
    costs = found / largest
    return {kind: tuple(costs[place].tolist()) for kind, place in places.items()}


def timed_runtimes() -> tuple[str, ...]:
    """The runtimes that have a fitted model."""
    return tuple(_fitted())


def latency_model(runtime: str) -> LatencyModel:
    """The fitted model of a runtime.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    known = _fitted()
    if runtime not in known:
        raise UserError(f"no times were fitted for runtime {runtime!r}: choose from {', '.join(known)}")
    return known[runtime]


@cache
def _fitted() -> dict[str, LatencyModel]:
    plain = json.loads(FITTED.read_text(encoding="utf-8"))
    return {name: from_plain(entry) for name, entry in plain["runtimes"].items()}


def from_plain(entry: Mapping[str, Any]) -> LatencyModel:
    """A model as it is stored."""
    costs = {kind: tuple(map(float, values)) for kind, values in entry["milliseconds"].items()}
    return LatencyModel(entry["runtime"], entry["version"], entry["processor"], entry["clock"], costs)


# --- What an op does ----------------------------------------------------------------------------------------


def _work(graph: Graph, node: Node, kernels: str) -> Work:
    if node.kind == "CONV_2D":
        return _convolution(graph, node, kernels)
    if node.kind == "DEPTHWISE_CONV_2D":
        return _depthwise(graph, node, kernels)
    if node.kind == "FULLY_CONNECTED":
        outputs, inputs = graph.shape(int(node.op.inputs[1]))
        return Work("linear", (1.0, outputs, outputs * inputs))
    pixels, channels = _map(graph, node.inputs[0])
    if node.kind in ("MEAN", "SUM"):  # A mean is a sum and a scale.
        return Work(f"MEAN, {kernels}", (1.0, channels, pixels * channels))
    kind = node.kind  # Number by number: the same kernel, whatever the layout.
    if len(node.inputs) == 2 and _map(graph, node.inputs[1])[0] != pixels:
        kind = f"{kind} of one pixel, {kernels}"
    pixels, channels = _map(graph, int(node.op.outputs[0]))
    return Work(kind, (1.0, pixels * channels))


def _convolution(graph: Graph, node: Node, kernels: str) -> Work:
    out, height, width, in_ = graph.shape(int(node.op.inputs[1]))
    pixels, _ = _map(graph, int(node.op.outputs[0]))
    if (height, width) != (1, 1):
        kind = f"conv {height}x{width} of {'an image' if in_ == 3 else 'a map'}, {kernels}"
        return Work(kind, (1.0, pixels * out, pixels * out * height * width * in_))
    if kernels == DENSE:
        return Work(
            "conv1x1, dense", (1.0, pixels * out, pixels * in_, pixels * out * in_), weight=node.weight
        )
    outputs = (1.0, out * strips(pixels), out * pixels, 0.0, 0.0)
    kept = (0.0, 0.0, 0.0, float(strips(pixels)), float(pixels))
    return Work("conv1x1, sparse", outputs, weight=node.weight, per_kept=kept)


def _depthwise(graph: Graph, node: Node, kernels: str) -> Work:
    _, height, width, channels = graph.shape(int(node.op.inputs[1]))
    _, rows, columns, _ = graph.shape(int(node.op.outputs[0]))
    stride = node.op.builtinOptions.strideH
    kind = f"depthwise {height}x{width} at stride {stride}, {kernels}"
    # Sparse kernels go channel by channel and row by row, dense ones pixel by pixel.
    between = channels * rows if kernels == SPARSE else rows * columns
    return Work(kind, (1.0, between, rows * columns * channels))


def _map(graph: Graph, tensor: int) -> tuple[int, int]:
    """Pixels and channels of a map; of anything else one pixel."""
    shape = graph.shape(tensor)
    return (shape[1] * shape[2], shape[3]) if len(shape) == 4 else (1, int(np.prod(shape)))


def _is_1x1(graph: Graph, node: Node) -> bool:
    return (
        node.kind == "CONV_2D"
        and node.weight is not None
        and graph.shape(int(node.op.inputs[1]))[1:3] == (1, 1)
    )


def _size(graph: Graph, node: Node) -> int:
    return int(np.prod(graph.shape(int(node.op.inputs[1]))))


def _kept(graph: Graph, node: Node) -> int:
    return 0 if node.weight is None else int(np.count_nonzero(graph.stored_values(node.weight)))


def _weights_in_order(graph: Graph) -> list[int]:
    return [tensor for _, tensor in weights(graph)]
