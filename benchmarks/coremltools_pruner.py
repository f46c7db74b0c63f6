"""coremltools' pruner in the place of ours, for the benchmarks that compare the two."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from edgeprune import pruning
from edgeprune.pruning import Block, Pattern


class CoremltoolsPruner:
    """coremltools' MagnitudePruner with the interface of a Sparsifier, on the same layers and schedule."""

    def __init__(self, model: nn.Module, pattern: Pattern, sparsity: float, steps: int, every: int) -> None:
        # Imported late: it sets up logging of its own.
        from coremltools.optimize.torch.pruning import (
            MagnitudePruner,
            MagnitudePrunerConfig,
            ModuleMagnitudePrunerConfig,
        )
        from coremltools.optimize.torch.pruning.pruning_scheduler import PolynomialDecayScheduler

        # It warns of every layer that the fraction does not divide.
        logging.getLogger("coremltools.optimize.torch").setLevel(logging.ERROR)
        layers = [s.name for s in pruning.prunable(model, pattern)]
        # Its own example begins and ends with the sparsity of the first and the last of these steps.
        updates = [*range(0, steps, every), steps]
        setting = ModuleMagnitudePrunerConfig(
            scheduler=PolynomialDecayScheduler(update_steps=updates, power=3),
            target_sparsity=sparsity,
            block_size=pattern.out if isinstance(pattern, Block) else 1,
        )
        self._pruner = MagnitudePruner(
            model, MagnitudePrunerConfig(module_name_configs=dict.fromkeys(layers, setting))
        )
        self._pruner.prepare(inplace=True)

    @property
    def sparsity(self) -> float:
        """Not asked for while it trains: the zeros are counted in the finished model."""
        return 0.0

    def step(self) -> None:
        """After every optimizer step."""
        self._pruner.step()

    def finalize(self) -> None:
        """Leave plain weights."""
        self._pruner.finalize(inplace=True)

    def state_dict(self) -> dict[str, Any]:
        """Rows are short and not resumed midway."""
        return {}
