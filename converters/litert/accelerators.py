"""What LiteRT's GPU and NPU do with a `.tflite` file's ops."""

from __future__ import annotations

from typing import Any

from converters.accelerators import Backend, Kind, OpVerdict, Outcome, Source
from converters.litert.graph import Graph

GPU, NPU = "litert-gpu", "litert-npu"

GPU_SOURCE = Source(
    Kind.SOURCE, "google-ai-edge/LiteRT tflite/delegates/gpu/common/model_builder.cc (34ec5bad)", "2026-11-26"
)
GPU_PATCHES = Source(
    Kind.MEASURED, "google-ai-edge/litert-samples utilities/litert_gpu_toolkit, on a Pixel 8a", "2026-11-26"
)
GPU_DILATED = Source(
    Kind.MEASURED, "github.com/tensorflow/tensorflow/issues/28563, DeepLab on an LG V30's GPU", "2019-05-09"
)
GPU_DENSIFY = Source(
    Kind.SOURCE, "google-ai-edge/LiteRT ml_drift_delegate/tflite/model_builder.cc (084c864c)", "2026-11-26"
)
NPU_NONE = Source(
    Kind.NONE, "each maker's compiler decides; ai.google.dev/edge/litert lists no ops for all", "2026-11-26"
)

# What the delegate's NewOperationParser has a parser for.
_GPU_OPS = """
    ABS ADD ADD_N AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D COS CUMSUM DENSIFY DEPTHWISE_CONV_2D
    DEPTH_TO_SPACE DEQUANTIZE DIV EQUAL ELU EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GELU GREATER
    GREATER_EQUAL HARD_SWISH LESS LESS_EQUAL LOGISTIC LOG LOGICAL_AND LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PACK PAD PADV2 POW REDUCE_MAX REDUCE_MIN REDUCE_PROD QUANTIZE RELU
    RELU6 RELU_0_TO_1 RELU_N1_TO_1 LEAKY_RELU PRELU RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT
    SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE
    STRIDED_SLICE SUB SUM TANH TRANSPOSE TRANSPOSE_CONV
"""
GPU_OPS = frozenset(_GPU_OPS.split())
# What it says of tensors that are computed: IsAllAllowedTensors.
GPU_TYPES = ("FLOAT32", "FLOAT16", "INT32", "BOOL", "INT8", "UINT8")
MOST_DIMS = 4
REWRITES = {
    "GATHER_ND": "slice or resize otherwise: grid_sample, bicubic resizing and padded max pools become it; "
    "write them as matmuls, bilinear resizing and an explicit pad",
    "CUSTOM": "replace the custom op by built-in ones",
}
DENSIFY = (
    "the older GPU delegate expands sparse weights; the newer one, CompiledModel's, says that it no longer "
    "does: give it a file whose weights are stored dense"
)
DILATED = (
    "the delegate takes its dilation, but a network of such gave other values there than on the CPU: compare "
    "them on the phone, or use a larger kernel or a stride instead of the dilation"
)
ASK_NPU = "compile it for the phone's NPU (LiteRT's compiler, or litert-cli) and read what is left to the CPU"


def examine(graph: Graph) -> tuple[Backend, ...]:
    """Both accelerators."""
    return (
        Backend(GPU, tuple(_on_gpu(graph, number, op) for number, op in enumerate(graph.ops))),
        Backend(NPU, tuple(_on_npu(graph, number, op) for number, op in enumerate(graph.ops))),
    )


def _on_gpu(graph: Graph, number: int, op: Any) -> OpVerdict:
    name, place = graph.op_name(op), _place(graph, number, op)
    tensors = [int(t) for t in [*op.inputs, *op.outputs] if t >= 0]
    large = [t for t in tensors if len(graph.shape(t)) > MOST_DIMS]
    odd = [t for t in tensors if not graph.is_constant(t) and graph.type_name(t) not in GPU_TYPES]
    if name in REWRITES:
        source = GPU_PATCHES if name == "GATHER_ND" else GPU_SOURCE
        return OpVerdict(name, place, Outcome.FALLS_BACK, REWRITES[name], source)
    if large:
        sides = len(graph.shape(large[0]))
        change = (
            f"{graph.name(large[0])} has {sides} dimensions: reshape so that none has more than {MOST_DIMS}"
        )
        return OpVerdict(name, place, Outcome.FALLS_BACK, change, GPU_SOURCE)
    if odd:
        change = f"{graph.name(odd[0])} is {graph.type_name(odd[0])}: compute in float32 or int32"
        return OpVerdict(name, place, Outcome.FALLS_BACK, change, GPU_SOURCE)
    if name not in GPU_OPS:
        change = "the GPU delegate has no such op: write it with others, or leave it to the CPU at the end"
        return OpVerdict(name, place, Outcome.FALLS_BACK, change, GPU_SOURCE)
    if name == "DENSIFY":
        return OpVerdict(name, place, Outcome.RUNS, DENSIFY, GPU_DENSIFY)
    if name == "DEPTHWISE_CONV_2D" and _is_dilated(op):
        return OpVerdict(name, place, Outcome.RUNS, DILATED, GPU_DILATED)
    return OpVerdict(name, place, Outcome.RUNS, "", GPU_SOURCE)


def _is_dilated(op: Any) -> bool:
    options = op.builtinOptions
    return options is not None and max(options.dilationWFactor, options.dilationHFactor) > 1


def _on_npu(graph: Graph, number: int, op: Any) -> OpVerdict:
    return OpVerdict(graph.op_name(op), _place(graph, number, op), Outcome.UNKNOWN, ASK_NPU, NPU_NONE)


def _place(graph: Graph, number: int, op: Any) -> str:
    outputs = [int(t) for t in op.outputs if t >= 0]
    return f"op {number} ({graph.name(outputs[0])})" if outputs else f"op {number}"
