"""Pruning layer by layer in the order they run, each to give what the dense model's layer gave.

Every layer sees the inputs that the pruned layers before it give, and is asked for the outputs of the dense
model on the same images: an error made earlier is made up for where it can be (as in GPTAQ, Li et al., ICML
2025). Means are taken out of the least squares; the shift that is left goes into the layer's bias, or into
the running mean of the batch norm behind it (bias correction, Nagel et al., ICCV 2019).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.allocator import keeping_freed_memory
from edgeprune.errors import ToolError, UserError
from edgeprune.pruning import calibration as calibrating
from edgeprune.pruning import obc
from edgeprune.pruning.allocation.result import Curves
from edgeprune.pruning.calibration import Batch, Calibration, Pairing
from edgeprune.pruning.patterns import Pattern
from edgeprune.pruning.select import Rule, Selected, select
from edgeprune.pruning.walk import inputs_in_order

CURVE_POINTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

# From a layer and the problem it poses to its new weight, (out, in / groups, ...).
Solve = Callable[[Selected, obc.Problem], Tensor]


def prune_in_order(model: nn.Module, selected: Sequence[Selected], batches: Sequence[Batch]) -> None:
    """Exact Optimal Brain Compression of each layer, in place, by its own rule.

    Raises:
        UserError: a layer that never runs, NaN or infinite inputs. The model is then as it was.
        ToolError: second moments that cannot be inverted.
    """
    dense = copy.deepcopy(model)
    _in_order(model, dense, selected, batches, _compressed)


def refit_in_order(
    model: nn.Module, dense: nn.Module, selected: Sequence[Selected], batches: Sequence[Batch]
) -> None:
    """Set what stays of each pruned layer of `model` by least squares, in place; zeros stay where they are.

    Raises:
        UserError: a layer that never runs, NaN or infinite inputs. The model is then as it was.
        ToolError: second moments that cannot be inverted.
    """
    _in_order(model, dense, selected, batches, lambda s, problem: obc.refit(problem, s.layer.weight != 0))


def _compressed(selected: Selected, problem: obc.Problem) -> Tensor:
    return obc.compress(problem, selected.rule.pattern, selected.rule.sparsity)


def _in_order(
    model: nn.Module, dense: nn.Module, selected: Sequence[Selected], batches: Sequence[Batch], solve: Solve
) -> None:
    layers = {s.name: s for s in selected}
    modules = {name: s.layer for name, s in layers.items()}
    norms = calibrating.batch_norms_behind(model, modules, batches)
    with calibrating.unchanged_on_error(model):
        for name, inputs in inputs_in_order((model, dense), modules, batches):
            wanted = dense.get_submodule(name)
            pairs = ((own, wanted(of_dense)) for own, of_dense in inputs)
            pairing = calibrating.paired_moments(modules[name], pairs)
            _settle(layers[name], dense, pairing, norms.get(name), solve)


@torch.no_grad()
def _settle(
    selected: Selected, dense: nn.Module, pairing: Pairing, norm: _BatchNorm | None, solve: Solve
) -> None:
    name, layer = selected.name, selected.layer
    if not bool(pairing.moments.isfinite().all() & pairing.cross.isfinite().all()):
        raise UserError(f"layer {name!r}: its inputs are NaN or infinite on the calibration images")
    shifts = layer.bias is not None or (norm is not None and norm.running_mean is not None)
    moments, cross = centred(pairing) if shifts else (pairing.moments, pairing.cross)
    try:
        # The dense weights, not those that zeros were put into: what is unknown should stay as it was.
        start = dense.get_parameter(f"{name}.weight" if name else "weight").detach()
        weight = solve(
            selected,
            obc.problem_of(start, moments, selected.rule.pattern, cross=cross, samples=pairing.samples),
        )
    except ToolError as error:
        raise ToolError(f"layer {name!r}: {error}") from error
    new = weight.to(layer.weight)
    if not bool(new.isfinite().all()):
        raise UserError(f"layer {name!r}: its new weights do not fit {layer.weight.dtype}; use float32")
    layer.weight.data.copy_(new)
    if shifts:
        _shift(layer, norm, outputs_missed(weight, pairing))


def centred(pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Covariances instead of second moments."""
    moments = pairing.moments - pairing.inputs.unsqueeze(2) * pairing.inputs.unsqueeze(1)
    cross = pairing.cross - pairing.outputs.unsqueeze(2) * pairing.inputs.unsqueeze(1)
    return moments, cross


def outputs_missed(weight: Tensor, pairing: Pairing) -> Tensor:
    """Mean output that is wanted less the mean of what the weights alone give: (out,)."""
    rows = weight.double().reshape(len(pairing.inputs), -1, pairing.inputs.shape[1])
    return (pairing.outputs - (rows @ pairing.inputs.unsqueeze(2)).squeeze(2)).flatten()


def _shift(layer: nn.Conv2d | nn.Linear, norm: _BatchNorm | None, missed: Tensor) -> None:
    if layer.bias is not None:
        layer.bias.data.copy_(missed)
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.sub_(missed.to(norm.running_mean))


@keeping_freed_memory()
def obc_curves(
    model: nn.Module,
    pattern: Pattern,
    calibration: Calibration,
    *,
    layers: Sequence[str] | None = None,
    sparsities: Sequence[float] = CURVE_POINTS,
) -> Curves:
    """What exact OBC loses of each layer's outputs at each sparsity, for `allocation.shares.by_sensitivity`.

    The error of a layer is the mean square that its outputs move by over their variance, its inputs being
    the dense model's (Frantar & Alistarh, 2022, mix sparsities of layers by such curves). It does not tell
    how much the answers mind: for blocks of a pretrained network, what each layer alone does to the answers
    (`evaluation.sensitivity.answer_curves`) placed zeros better. The model stays as it is.

    Args:
        model: dense.
        pattern: where zeros may be; not N of M, which has one sparsity.
        calibration: batches of what the model takes.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        sparsities: rising from 0, to below 1.

    Raises:
        UserError: see `select`.
    """
    names: Sequence[str | None] = [None] if layers is None else layers
    chosen = [s for s in select(model, [Rule(pattern, 0.5, name) for name in names]) if not s.reason]
    modules = {s.name: s.layer for s in chosen}
    batches = calibrating.read_batches(calibration, "obc")
    lost: dict[str, list[float]] = {}
    for name, inputs in inputs_in_order((model,), modules, batches):
        layer = modules[name]
        pairing = calibrating.paired_moments(layer, ((own, layer(own)) for (own,) in inputs))
        moments, _ = centred(pairing)
        problem = obc.problem_of(layer.weight.detach(), moments, pattern, samples=pairing.samples)
        lost[name] = obc.error_curve(problem, pattern, sparsities)
    return Curves(tuple(lost), tuple(sparsities), np.array(list(lost.values())))
