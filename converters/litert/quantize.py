"""Static int8: weights and activations as integers, by litert-quantizer, calibrated on real images.

What people ship on arm64 where its accuracy holds, so the row to compare sparse files with. Zeros are stored
like any other value: there are no sparse integer kernels.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np

from converters.errors import ToolError
from converters.litert.graph import WEIGHTED_OPS, Graph, read, weights
from converters.litert.silence import quiet

# Enough for ranges to settle on small images; more only takes longer.
MIN_CALIBRATION_IMAGES = 8
CALIBRATION_THREADS = 2


def static_int8(graph: Graph, images: np.ndarray) -> Graph:
    """Quantise a float graph; it goes on taking and giving float32.

    Args:
        graph: of one image in, one tensor out, every tensor named once.
        images: (n, channels, height, width) float32, what the graph's input takes.

    Raises:
        ToolError: litert-quantizer cannot quantise the graph.
    """
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from litert_quantizer import quantizer, recipe_manager
        from litert_quantizer.qtyping import TFLOperationName

        signature = graph.model.signatureDefs[0]
        name = _text(signature.inputs[0].name)
        samples = [{name: image[None].transpose(0, 2, 3, 1).astype(np.float32)} for image in images]
        recipe = recipe_manager.RecipeManager()
        recipe.add_static_config(
            ".*", TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
        )
        for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            recipe.add_quantization_config(".*", end, algorithm_key="no_quantize")
        try:
            work = quantizer.Quantizer(graph.to_bytes(), recipe.get_quantization_recipe())
            ranges = work.calibrate({_text(signature.signatureKey): samples}, num_threads=CALIBRATION_THREADS)
            content = bytes(work.quantize(ranges).quantized_model)
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ToolError(f"litert-quantizer cannot quantise {graph.source}: {first_line}") from error
    quantized = read(content, graph.source)
    keep_biases_of_empty_channels(graph, quantized)
    return quantized


def keep_biases_of_empty_channels(graph: Graph, quantized: Graph) -> None:
    """Store the biases of output channels whose weights are all zero with a scale that can hold them.

    The quantiser gives such a channel the smallest scale it has, and its bias, stored in steps of that, is
    cut off at the end of int32: a pruned network then computes nonsense. Zeros are zeros in any scale.

    Args:
        graph: before.
        quantized: the same graph after; changed in place.
    """
    for (float_op, _), (op, weight) in zip(weights(graph), weights(quantized), strict=True):
        table = quantized.tensors[weight].quantization
        if quantized.type_name(weight) != "INT8" or len(op.inputs) < 3 or op.inputs[2] < 0:
            continue
        values = np.moveaxis(quantized.constant(weight), WEIGHTED_OPS[quantized.op_name(op)], 0)
        empty = np.logical_not(np.any(values.reshape(len(values), -1), axis=1))
        scale = np.array(table.scale, np.float32)
        if not empty.any() or len(scale) != len(empty):
            continue
        scale[empty] = np.median(scale[~empty]) if not empty.all() else 1.0
        bias = int(op.inputs[2])
        steps = scale * np.float32(quantized.tensors[int(op.inputs[0])].quantization.scale[0])
        limits = np.iinfo(np.int32)
        exact = graph.constant(int(float_op.inputs[2])).reshape(-1)[empty] / steps[empty]
        stored = quantized.constant(bias).copy()
        stored[empty] = np.clip(np.rint(exact), limits.min, limits.max)
        quantized.replace_constant(bias, stored)
        table.scale, quantized.tensors[bias].quantization.scale = scale, steps


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
