"""Layers in the order they run, each with what it reads once those before it are pruned.

Where torch.fx can follow the model, every operation runs once: what later ones still need of each image is
held between layers, so that the work grows with the layers and not with their square. Where it cannot, or
memory would not do, the images run again for every layer, as far as that layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from edgeprune.data.memory import memory_bytes
from edgeprune.pruning.calibration import (
    Batch,
    Layer,
    as_taken,
    evaluating,
    refuse_idle,
    run_model,
    watching,
)

HELD_FRACTION = 0.3  # Of the memory there is, for what later layers still need.
# The largest result of an operation: glibc asks the system for larger ones each time, which takes longer
# than most operations.
RESULT_BYTES = 1 << 24


def calls_in_order(model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Batch]) -> dict[str, int]:
    """How often each layer runs for a batch, in the order they run first.

    Raises:
        UserError: a layer that never runs.
    """
    calls: dict[str, int] = {}

    def watch(name: str, _: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1

    with watching(model, watch, layers):
        run_model(model, batches[0][0][:1])
    refuse_idle(layers, calls)
    return calls


def inputs_in_order(
    models: Sequence[nn.Module], layers: Mapping[str, Layer], batches: Sequence[Batch]
) -> Iterator[tuple[str, Iterator[tuple[Tensor, ...]]]]:
    """Each layer's name, and what it reads, batch after batch: one tensor for each of the models.

    What is done to a layer of a model before the next one is asked for is seen by that one.

    Args:
        models: copies of one model, in which the layers' weights may differ.
        layers: of the first, by name.
        batches: at least one.

    Raises:
        UserError: a layer that never runs.
    """
    calls = calls_in_order(models[0], layers, batches)
    plan = _plan(models[0], calls, batches, len(models))
    if plan:
        yield from _once(models, plan, calls, batches)
        return
    for name, count in calls.items():
        yield name, _again(models, name, count, batches)


def _again(
    models: Sequence[nn.Module], name: str, calls: int, batches: Sequence[Batch]
) -> Iterator[tuple[Tensor, ...]]:
    """All batches from the first operation to the layer."""
    for images, _ in batches:
        yield from zip(*(_reached(model, name, calls, images) for model in models), strict=True)


class _ReachedError(Exception):
    """The layer has seen all of a batch; the rest of the model need not run."""


def _reached(model: nn.Module, name: str, calls: int, images: Tensor) -> list[Tensor]:
    """What a layer reads each time it runs for a batch."""
    seen: list[Tensor] = []

    def watch(_: str, inputs: Tensor) -> None:
        seen.append(inputs)
        if len(seen) == calls:
            raise _ReachedError

    layer: Any = model.get_submodule(name)
    with watching(model, watch, {"": layer}), suppress(_ReachedError):
        run_model(model, images)
    return seen


@dataclass(frozen=True)
class _Plan:
    """A model's operations in order, the first its input; and how many images to run at a time."""

    nodes: list[fx.Node]
    at_once: int


def _once(
    models: Sequence[nn.Module], plan: _Plan, calls: Mapping[str, int], batches: Sequence[Batch]
) -> Iterator[tuple[str, Iterator[tuple[Tensor, ...]]]]:
    sides = [_Side(model, plan, batches) for model in models]
    for node in plan.nodes:
        if node.op == "call_module" and str(node.target) in calls:
            yield str(node.target), zip(*(side.inputs(node) for side in sides), strict=True)


class _Side:
    """A model, and how far each part of the images has run in it."""

    def __init__(self, model: nn.Module, plan: _Plan, batches: Sequence[Batch]) -> None:
        self.model = model
        self.nodes = plan.nodes
        self.interpreter = _interpreter(model, plan.nodes)
        parts = (part for images, _ in batches for part in torch.split(images, plan.at_once))
        self.values = [{plan.nodes[0]: as_taken(model, part)} for part in parts]
        self.done = [1] * len(self.values)

    def inputs(self, stop: fx.Node) -> Iterator[Tensor]:
        """What an operation reads of each part, which runs as far as that now and not before.

        A layer that has seen enough leaves the other parts where they are: who needs them later runs them
        through layers that are settled by then.
        """
        end = self.nodes.index(stop)
        for number, values in enumerate(self.values):
            with evaluating(self.model), torch.no_grad():
                for node in self.nodes[self.done[number] : end]:
                    _step(self.interpreter, node, values)
            self.done[number] = end
            yield values[stop.all_input_nodes[0]]


def _step(interpreter: fx.Interpreter, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """Run one operation, and forget what no later one needs."""
    interpreter.env = values
    result = values[node] = interpreter.run_node(node)
    for last in interpreter.user_to_last_uses.get(node, []):
        del values[last]
    return result


def _interpreter(model: nn.Module, nodes: Sequence[fx.Node]) -> fx.Interpreter:
    return fx.Interpreter(fx.GraphModule(model, nodes[0].graph))


def _plan(model: nn.Module, calls: Mapping[str, int], batches: Sequence[Batch], models: int) -> _Plan | None:
    """How to run each operation once, where each layer is one that runs once, and memory will do."""
    try:
        nodes = list(_traced(model).nodes)
        called = [str(node.target) for node in nodes if node.op == "call_module"]
        inputs = [node for node in nodes if node.op == "placeholder" and node.users]
        if any(count > 1 or called.count(name) != 1 for name, count in calls.items()) or inputs != nodes[:1]:
            return None
        sizes = _sizes(model, nodes, set(calls), batches[0][0][:1])
    except Exception:  # Whatever a model does that torch.fx cannot follow.
        return None
    if sizes is None:
        return None
    images = sum(len(images) for images, _ in batches)
    if models * images * sizes.held > HELD_FRACTION * _memory_bytes(next(model.parameters()).device):
        return None
    return _Plan(nodes, max(RESULT_BYTES // max(sizes.result, 1), 1))


def _memory_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()


@dataclass
class _Sizes:
    """Bytes for one image: the largest result of an operation, and the most that is held before a layer."""

    result: int = 0
    held: int = 0


def _sizes(model: nn.Module, nodes: Sequence[fx.Node], layers: set[str], image: Tensor) -> _Sizes | None:
    """Of an image, operation by operation; None where their answer is not the model's."""
    interpreter, sizes = _interpreter(model, nodes), _Sizes()
    values: dict[fx.Node, Any] = {nodes[0]: as_taken(model, image.clone())}
    answer = None
    with evaluating(model), torch.no_grad():
        for node in nodes[1:]:
            if node.op == "call_module" and node.target in layers:
                sizes.held = max(sizes.held, _bytes(values))
            answer = _step(interpreter, node, values)
            sizes.result = max(sizes.result, _bytes(answer))
        pairs = zip(tree_leaves(answer), tree_leaves(run_model(model, image.clone())), strict=True)
        return sizes if all(torch.equal(own, wanted) for own, wanted in pairs) else None


def _bytes(values: Any) -> int:
    return sum(tensor.nbytes for tensor in tree_leaves(values) if isinstance(tensor, Tensor))


def _traced(model: nn.Module) -> fx.Graph:
    with evaluating(model):
        return _Tracer().trace(model)


class _Tracer(fx.Tracer):
    """Goes into every module that has modules of its own, those of torch excepted."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())
