"""Pruning methods: patterns, criteria, schedules, and removed channels."""

from edgeprune.models.resize import resize
from edgeprune.pruning.channels.budget import least_channels, remove, shrink_to
from edgeprune.pruning.channels.shrink import fraction_for_macs, shrink
from edgeprune.pruning.channels.transformers import shrink_transformer
from edgeprune.pruning.criteria import CRITERIA
from edgeprune.pruning.distilling import distill
from edgeprune.pruning.oneshot import prune, prune_by_rules
from edgeprune.pruning.patterns import Block, Channels, NofM, Pattern, Unstructured
from edgeprune.pruning.schedule import Cubic, OneShot, Schedule, Stepwise
from edgeprune.pruning.select import Rule, Selected, prunable, select
from edgeprune.pruning.sparsifier import Sparsifier

__all__ = [
    "CRITERIA",
    "Block",
    "Channels",
    "Cubic",
    "NofM",
    "OneShot",
    "Pattern",
    "Rule",
    "Schedule",
    "Selected",
    "Sparsifier",
    "Stepwise",
    "Unstructured",
    "distill",
    "fraction_for_macs",
    "least_channels",
    "prunable",
    "prune",
    "prune_by_rules",
    "remove",
    "resize",
    "select",
    "shrink",
    "shrink_to",
    "shrink_transformer",
]
