"""A classifier as two models that an app chains: `front` with an early exit, and `rest` where it is unsure.

Teerapittayanon et al., "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks", 2016
(arXiv:1709.01686). The model is split behind one of its modules, whose output, a feature map, is all that
goes from one half to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from converters.deployed import SCORES
from edgeprune.errors import UserError
from edgeprune.models.cost import count_macs

FEATURES = "features"  # Beside `SCORES`, what the front gives.
AUTO_SHARE = 0.5
MAP_DIMS = 4
HEAD_WIDTH, HEAD_DEPTH = 128, 2
PLACES_SHOWN = 24
INPUT_WORDS = "the image itself"


@dataclass(frozen=True)
class Halves:
    """A model, split; the parts share its weights.

    Attributes:
        place: the last module of the front, as `model.named_modules()` has it.
        front: (n, 3, h, w) -> the feature map, (n, channels, rows, columns).
        rest: feature map -> (n, classes), to the bit what the model gives.
        channels: of the feature map.
        macs_share: of the model's multiplications that are in the front, 0 to 1.
    """

    place: str
    front: nn.Module
    rest: nn.Module
    channels: int
    macs_share: float


@dataclass(frozen=True)
class Place:
    """Where a model can be split.

    Attributes:
        name: of the module, as `model.named_modules()` has it.
        macs_share: of the model's multiplications up to its end, 0 to 1.
    """

    name: str
    macs_share: float

    def __str__(self) -> str:
        return f"{self.name} ({100 * self.macs_share:.0f} %)"


class ExitHead(nn.Sequential):
    """Class scores from a feature map: 1x1 convolution, depthwise separable ones, average pool, linear.

    The separable convolutions (Howard et al., 2017, MobileNets) look beyond a pixel, for a few hundredths of
    the model's multiplications. Without them a third as many images exited for the same loss on CIFAR-10.
    """

    def __init__(self, channels: int, classes: int, width: int = HEAD_WIDTH) -> None:
        """For maps of so many channels; `width` is the number of channels that the head itself has."""
        super().__init__(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *(layer for _ in range(HEAD_DEPTH) for layer in _separable(width)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )


def _separable(width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


class Front(nn.Module):
    """The first half with its exit: (n, 3, h, w) -> {"scores": (n, classes), "features": the feature map}.

    The names are those of the outputs of its file.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        """`Halves.front`, and a head for its feature map."""
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Both outputs."""
        features = self.body(images)
        return {SCORES: self.head(features), FEATURES: features}


def split(model: nn.Module, place: str, example: Tensor) -> Halves:
    """Split a classifier behind a module.

    Args:
        model: in eval mode; it gives (n, classes). It is not changed, and the halves share its weights.
        place: the module's name, as `model.named_modules()` has it.
        example: (1, 3, h, w) float32; only its shape counts.

    Raises:
        UserError: there is no such module, torch.fx cannot trace the model, or more than the module's output,
            one feature map, would have to go from one half to the other.
    """
    _refuse_training(model)
    if place not in dict(model.named_modules()) or not place:
        raise UserError([f"the model has no module {place!r} to split it behind", *_advice(model, example)])
    parts, problem = _parts(model, place)
    if parts is not None:
        problem = _wrong_result(model, parts, example)
    if parts is None or problem:
        raise UserError([f"cannot split the model behind {place}: {problem}", *_advice(model, example)])
    front, rest = parts
    with torch.no_grad():
        channels = int(front(example.clone()).shape[1])
    return Halves(place, front, rest, channels, count_macs(front, example) / count_macs(model, example))


def places(model: nn.Module, example: Tensor) -> list[Place]:
    """Where `split` works among the modules that run one after the other, in the order they run.

    Modules inside of blocks are not listed: naming one may work nevertheless. Of modules with the same share
    of multiplications, such as a convolution and its batch norm, it is the last.

    Args:
        model: see `split`, as for the other argument.
        example: as there.

    Raises:
        UserError: the model is in training mode, or torch.fx cannot trace it.
    """
    _refuse_training(model)
    total = count_macs(model, example)
    found: dict[float, Place] = {}
    for name in _in_a_row(model):
        parts, _ = _parts(model, name)
        if parts is None or _wrong_result(model, parts, example):
            continue
        share = count_macs(parts[0], example) / total
        if 0 < share < 1:
            found[share] = Place(name, share)
    return list(found.values())


def deepest(model: nn.Module, example: Tensor, most_macs_share: float = AUTO_SHARE) -> str:
    """The last place with at most so much of the model's multiplications before it.

    Raises:
        UserError: there is none.
    """
    found = places(model, example)
    fitting = [place.name for place in found if place.macs_share <= most_macs_share]
    if not fitting:
        raise UserError(
            [f"no place has at most {most_macs_share:.0%} of the multiplications before it", *_listed(found)]
        )
    return fitting[-1]


# --- Tracing ------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Goes into as few modules as it can: what happens inside of the others need not be traced."""

    def __init__(self, inside: Iterable[str] | None) -> None:
        """`inside` names the modules to go into; None: whatever is only a sequence of modules."""
        super().__init__()
        self._inside = None if inside is None else set(inside)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays whole."""
        if self._inside is None:
            return not isinstance(m, nn.Sequential)
        return module_qualified_name not in self._inside


def _traced(model: nn.Module, inside: Iterable[str] | None) -> fx.Graph:
    try:
        return _Tracer(inside).trace(model)
    except Exception as error:  # Whatever the model's own code raises on a value that is not there yet.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"torch.fx cannot trace {type(model).__name__}, so it cannot be split: {first_line}; wrap it in "
            "a module whose forward does not depend on the values it is given"
        ) from error


def _in_a_row(model: nn.Module) -> list[str]:
    """Names of the modules that run one after the other: of several that end together the outermost."""
    calls = [str(node.target) for node in _traced(model, None).nodes if node.op == "call_module"]
    modules = dict(model.named_modules())
    names: dict[str, None] = {}
    for at, call in enumerate(calls):
        name, after = call, calls[at + 1] if at + 1 < len(calls) else ""
        while (parent := name.rpartition(".")[0]) and not after.startswith(f"{parent}."):
            if not isinstance(modules[parent], nn.Sequential):
                break
            name = parent
        names[name] = None
    return list(names)


def _parts(model: nn.Module, place: str) -> tuple[tuple[nn.Module, nn.Module] | None, str]:
    """Front and rest, or why there are none."""
    steps = place.split(".")
    graph = _traced(model, (".".join(steps[:count]) for count in range(1, len(steps))))
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == place]
    if len(calls) != 1:
        return None, f"it runs {len(calls)} times in it"
    end = calls[0]
    before = _ancestors(end)
    crossing = _crossing(graph, before, end)
    if crossing:
        return None, f"what comes after it needs {_words(crossing)}, too, and only its output may cross"
    front, rest = fx.Graph(), fx.Graph()
    copied = _copied(graph, front, before, _defaults(graph))
    front.output(copied[end])
    after = {node for node in graph.nodes if node not in before and node.op != "placeholder"}
    constants = {node for node in before if node.op == "get_attr" and after & set(node.users)}
    _copied(graph, rest, after | constants, _defaults(graph) | {end: rest.placeholder(FEATURES)})
    return (_module(model, front, "Front"), _module(model, rest, "Rest")), ""


def _copied(graph: fx.Graph, into: fx.Graph, which: set[fx.Node], known: dict[fx.Node, Any]) -> Any:
    """Copies of some nodes in another graph, by the node; `known` has what they need besides each other."""
    for node in graph.nodes:
        if node in which and node not in known:
            known[node] = into.node_copy(node, lambda old: known[old])
    return known


def _defaults(graph: fx.Graph) -> dict[fx.Node, Any]:
    """What the arguments of the model besides the image are when they are not given."""
    return {node: node.args[0] for node in graph.nodes if node.op == "placeholder" and node.args}


def _module(model: nn.Module, graph: fx.Graph, name: str) -> nn.Module:
    return fx.GraphModule(model, graph, f"{type(model).__name__}{name}").eval()


def _ancestors(end: fx.Node) -> set[fx.Node]:
    """A node and all that it is computed from."""
    found, left = {end}, [end]
    while left:
        new = [node for node in left.pop().all_input_nodes if node not in found]
        found |= set(new)
        left += new
    return found


def _crossing(graph: fx.Graph, before: set[fx.Node], end: fx.Node) -> list[fx.Node]:
    """What is computed in the front and needed in the rest, besides the output of `end`."""
    return [
        node
        for node in graph.nodes
        if node in before
        and node is not end
        and node.op != "get_attr"
        and not (node.op == "placeholder" and node.args)
        and any(user not in before for user in node.users)
    ]


def _words(nodes: Sequence[fx.Node]) -> str:
    told = [
        INPUT_WORDS
        if node.op == "placeholder"
        else f"the output of {node.target}"
        if node.op == "call_module"
        else f"{node.name} ({getattr(node.target, '__name__', node.target)})"
        for node in nodes
    ]
    return ", ".join(told)


def _wrong_result(model: nn.Module, parts: tuple[nn.Module, nn.Module], example: Tensor) -> str:
    """Why the halves cannot be used: what crosses is no map, the model no classifier; "" if they can."""
    front, rest = parts
    with torch.no_grad():
        wanted: Any = model(example.clone())
        if not isinstance(wanted, Tensor) or wanted.ndim != 2:
            return "the model does not give (n, classes), a single tensor"
        features: Any = front(example.clone())
        if not isinstance(features, Tensor):
            return f"its output is a {type(features).__name__}, and one tensor may cross"
        if features.ndim != MAP_DIMS:
            return f"its output has shape {tuple(features.shape)}, and a feature map has four axes"
        if not torch.equal(rest(features), wanted):
            return "the halves do not compute what the model does"
    return ""


# --- Words --------------------------------------------------------------------------------------------------


def _refuse_training(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        raise UserError("the model is in training mode: call model.eval() before splitting it")


def _advice(model: nn.Module, example: Tensor) -> list[str]:
    return _listed(places(model, example))


def _listed(found: Sequence[Place]) -> list[str]:
    """Places for an error, some of them where there are many."""
    if not found:
        return ["it can be split nowhere between the modules that run one after the other"]
    step = -(-len(found) // PLACES_SHOWN)
    shown = ", ".join(map(str, found[step - 1 :: step]))
    return [f"places, with the share of the multiplications up to there: {shown}"]
