"""Static int8: weights and activations as integers, by ai-edge-quantizer, calibrated on real images.

What people ship on arm64 where its accuracy holds, so the row to compare sparse files with. Zeros are stored
like any other value: there are no sparse integer kernels.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np

from converters.errors import ToolError, UserError
from converters.litert.graph import Graph, read
from converters.litert.silence import quiet

# Enough for ranges to settle on small images; more only takes longer.
MIN_CALIBRATION_IMAGES = 8
CALIBRATION_THREADS = 2


def check_images(images: np.ndarray | None, shape: tuple[int, int, int]) -> np.ndarray:
    """Calibration images as given, (n, channels, height, width) float32.

    Raises:
        UserError: there are none, too few, or of another shape.
    """
    wanted = ", ".join(map(str, shape))
    if images is None:
        raise UserError(f"a static int8 file needs calibration images: (n, {wanted}) float32, real ones")
    if images.ndim != 4 or images.shape[1:] != shape or len(images) < MIN_CALIBRATION_IMAGES:
        raise UserError(
            f"calibration images are {images.shape}: "
            f"they must be (n, {wanted}), n at least {MIN_CALIBRATION_IMAGES}"
        )
    return images


def static_int8(graph: Graph, images: np.ndarray) -> Graph:
    """Quantise a float graph; it goes on taking and giving float32.

    Args:
        graph: of one image in, one tensor out, every tensor named once.
        images: (n, channels, height, width) float32, what the graph's input takes.

    Raises:
        ToolError: ai-edge-quantizer cannot quantise the graph.
    """
    with quiet(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from ai_edge_quantizer import quantizer, recipe_manager
        from ai_edge_quantizer.qtyping import TFLOperationName

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
            raise ToolError(f"ai-edge-quantizer cannot quantise {graph.source}: {first_line}") from error
    return read(content, graph.source)


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
