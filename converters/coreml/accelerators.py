"""What the Neural Engine and the GPU of Apple's chips do with a package's operations."""

from __future__ import annotations

from converters.accelerators import Backend, Kind, OpVerdict, Outcome, Source
from converters.coreml.neural_engine import why_it_leaves
from converters.coreml.program import Operation, Program

ANE, GPU = "core-ml-ane", "core-ml-gpu"

HOLLANCE = Source(
    Kind.MEASURED, "github.com/hollance/neural-engine docs/unsupported-layers.md (06a7632e)", "2026-11-26"
)
TRANSFORMERS = Source(
    Kind.INFERRED, "machinelearning.apple.com/research/neural-engine-transformers runs them there", "2022-06"
)
AS_GATHER = Source(
    Kind.INFERRED,
    "looks values up as gather does: hollance/neural-engine (06a7632e) has that one",
    "2026-11-26",
)
FLOAT32 = Source(
    Kind.DOCUMENTATION, "apple.github.io/coremltools, ML programs: typed execution", "2026-11-26"
)
NONE = Source(Kind.NONE, "Apple publishes none", "2026-11-26")
ASK = "MLComputePlan on a Mac says: edgeprune bench --write-script"

LIKE_GATHER = ("gather_nd", "gather_along_axis")
SOURCES = {"is computed in float32": FLOAT32}
CHANGES = {
    "is computed in float32": "convert with float16 precision",
    "is dilated": "use a larger kernel or a stride instead of the dilation",
}
# Layers that people saw there, and what Apple's own models for it are made of.
SEEN = {"conv_transpose": HOLLANCE, "upsample_bilinear": HOLLANCE, "upsample_nearest_neighbor": HOLLANCE}
MADE_OF = {"conv": TRANSFORMERS}


def examine(program: Program) -> tuple[Backend, ...]:
    """Both accelerators."""
    return (
        Backend(ANE, tuple(_on_neural_engine(operation, program) for operation in program.operations)),
        Backend(
            GPU,
            tuple(OpVerdict(op.type, op.name, Outcome.UNKNOWN, ASK, NONE) for op in program.operations),
        ),
    )


def _on_neural_engine(operation: Operation, program: Program) -> OpVerdict:
    reason = why_it_leaves(operation, program)
    if reason is not None:
        change = f"{reason}: {CHANGES.get(reason, 'write it with other operations, or move it to an end')}"
        source = AS_GATHER if operation.type in LIKE_GATHER else SOURCES.get(reason, HOLLANCE)
        return OpVerdict(operation.type, operation.name, Outcome.FALLS_BACK, change, source)
    known = SEEN.get(operation.type) or MADE_OF.get(operation.type)
    if known is not None:
        return OpVerdict(operation.type, operation.name, Outcome.RUNS, "", known)
    return OpVerdict(operation.type, operation.name, Outcome.UNKNOWN, ASK, NONE)
