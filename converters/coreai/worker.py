"""What the child process of this package does: parse, decode and run files that may make no sense.

`python -m converters.coreai.worker DESCRIPTOR`; its messages and answers are those of `apart`.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import Any

import numpy as np

from converters.child import RefusedError, serve
from converters.coreai.apart import Answer, Facts, Ready, Run, Trace
from converters.coreai.program import (
    CONSTANT,
    DECODING,
    MalformedError,
    distinct,
    layer_uses,
    main_graph,
    operations,
    shape_of,
    stored_weights,
)
from converters.coreai.runtime import Executable, Quick, module_of, read_program, tensors
from converters.errors import UserError

EXECUTABLES_KEPT = 4
MEMORY_LIMIT_BYTES = 16 << 30


class Worker:
    """Keeps the executables that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Executable | Quick] = OrderedDict()
        self._seconds: dict[tuple[str, str], float] = {}

    def answer(self, message: Any) -> Any:
        """What a message gets; everything that goes wrong inside is the file's fault."""
        try:
            if isinstance(message, Facts):
                return facts(message.content)
            if isinstance(message, Trace):
                return tensors(message.content, message.image)
            return self._run(message) if isinstance(message, Run) else self._ready(message)
        except RefusedError:
            raise
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RefusedError(line[:300]) from None

    def _ready(self, message: Ready) -> tuple[tuple[str, ...], float]:
        if message.key not in self._kept:
            program = read_program(message.content)
            as_it_is = Executable(program)
            start = time.perf_counter()
            if message.activations == "float16":
                self._keep(message.key, as_it_is)
            else:
                as_it_is.run(message.image)
                self._seconds[message.key] = time.perf_counter() - start
                as_it_is.close()
                self._keep(message.key, Quick(message.content))
        return self._kept[message.key].outputs, self._seconds.get(message.key, 0.0)

    def _keep(self, key: tuple[str, str], executable: Executable | Quick) -> None:
        self._kept[key] = executable
        while len(self._kept) > EXECUTABLES_KEPT:
            self._kept.popitem(last=False)[1].close()

    def _run(self, message: Run) -> list[np.ndarray] | None:
        if message.key not in self._kept:
            return None  # another process than the one that made it ready, or one of too many
        self._kept.move_to_end(message.key)
        return self._kept[message.key].run(message.images)


def facts(content: bytes) -> Answer:
    """What a program takes, gives and stores."""
    module = module_of(read_program(content))
    with module.context:
        graph = main_graph(module)
        block = graph.regions[0].blocks[0]
        uses = layer_uses(module)
        first = distinct(uses)
        numbers = [next(i for i, use in enumerate(first) if use.source == other.source) for other in uses]
        kind = graph.attributes["function_type"].value
        return Answer(
            inputs=_named(graph, "arg_attrs", [shape_of(argument) for argument in block.arguments]),
            outputs=_named(graph, "res_attrs", [tuple(result.shape) for result in kind.results]),
            weights=tuple(stored_weights(first)),
            uses=tuple(numbers),
            operations=dict(Counter(o.name for o in operations(module) if _is_computed(o.name))),
        )


def _is_computed(name: str) -> bool:
    """Whether an operation does something for each image."""
    return name not in (CONSTANT, "coreai.graph", "coreai.output", "builtin.module", *DECODING)


def _named(
    graph: Any, attribute: str, shapes: list[tuple[int, ...]]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    names = [entry["coreai.name"].value for entry in graph.attributes[attribute]]
    if len(names) != len(shapes):
        raise MalformedError("its inputs or outputs have no names")
    return tuple(zip(names, shapes, strict=True))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not everywhere
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main() -> None:
    """Serve until the parent is gone."""
    _limit_memory()
    try:
        serve(Worker().answer)
    except UserError:
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
