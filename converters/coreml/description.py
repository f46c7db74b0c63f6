"""What a package says of itself: class labels for apps, author, licence, version, how it was compressed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from converters.coreml.framework import proto
from converters.coreml.program import StoredWeight

# Keys that have a place of their own in the description; any other is user-defined.
_PLACES = {
    "short_description": "shortDescription",
    "author": "author",
    "license": "license",
    "version": "versionString",
}
# Written by coremltools; it would make two conversions of one model differ.
DATE = "com.github.apple.coremltools.conversion_date"
PREVIEW_TYPE = "com.apple.coreml.model.preview.type"
PREVIEW_PARAMETERS = "com.apple.coreml.model.preview.params"
RGB_CHANNELS = 3
# Of a package that another goes on from; see `deployed.named_results`.
_OUTPUT_WORDS = {
    "scores": "class scores of the early exit, before any softmax",
    "features": "feature map, as the other package takes it",
}
_LABEL, _LABEL_PROBABILITIES = "classLabel", "classLabel_probs"


def describe(spec: Any, labels: Sequence[str] | None, metadata: Mapping[str, str], probabilities: str) -> Any:
    """Fill in the description of a specification, and make it a classifier where there are labels.

    Args:
        spec: the `Model` message; changed and returned.
        labels: class names in output order.
        metadata: texts by key.
        probabilities: name of the output that holds them, where there are labels.
    """
    description = spec.description
    description.metadata.userDefined.pop(DATE, None)
    for key, text in metadata.items():
        if key in _PLACES:
            setattr(description.metadata, _PLACES[key], text)
        else:
            description.metadata.userDefined[key] = text
    for feature in description.input:
        feature.shortDescription = _input_words(feature.type)
    for feature in description.output:
        feature.shortDescription = _OUTPUT_WORDS.get(feature.name, "output of the model")
        if feature.name == probabilities:
            feature.shortDescription = "softmax of the logits, by class"
    if labels is not None:
        _classify(spec, labels, probabilities)
    return spec


def _input_words(kind: Any) -> str:
    if kind.WhichOneof("Type") == "imageType":
        return "RGB image"
    is_image = list(kind.multiArrayType.shape)[1] == RGB_CHANNELS
    return "RGB image, normalised as for training" if is_image else "feature map of the package before"


def segmenter(labels: Sequence[str]) -> dict[str, str]:
    """User-defined entries by which Xcode knows a model that gives maps, and the names of its classes."""
    return {PREVIEW_TYPE: "imageSegmenter", PREVIEW_PARAMETERS: json.dumps({"labels": list(labels)})}


def detector(labels: Sequence[str]) -> dict[str, str]:
    """The user-defined entry with the names of the classes of a model that gives rows of boxes."""
    return {PREVIEW_PARAMETERS: json.dumps({"labels": list(labels)})}


def map_labels(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The names that `segmenter` or `detector` wrote among the user-defined entries; None without them."""
    try:
        told = json.loads(metadata.get(PREVIEW_PARAMETERS, "{}"))
    except ValueError:
        return None
    labels = told.get("labels") if isinstance(told, dict) else None
    known = isinstance(labels, list) and bool(labels) and all(isinstance(label, str) for label in labels)
    return tuple(labels) if known and labels else None


def summary(layers: Sequence[StoredWeight]) -> str:
    """How the weights of layers are stored, e.g. "layers: sparse float16 42, float16 12; 74.1% zeros"."""
    count = sum(weight.value.size for weight in layers)
    if not count:
        return "no layers with weights"
    zeros = sum(np.count_nonzero(weight.value == 0) for weight in layers) / count
    bits = sum(weight.bits for weight in layers) / count
    encodings = Counter(weight.encoding for weight in layers).most_common()
    listed = ", ".join(f"{encoding} {number}" for encoding, number in encodings)
    return f"layers: {listed}; {zeros:.1%} zeros; {bits:.1f} bits a weight"


def _classify(spec: Any, labels: Sequence[str], probabilities: str) -> None:
    """Add Core ML's `classify` operation, which names the likeliest class and gives probabilities by name.

    coremltools adds it itself only where the model has a single output; this one keeps its logits as well.
    """
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    operation = block.operations.add(type="classify")
    operation.inputs["probabilities"].arguments.add(name=probabilities)
    operation.inputs["classes"].arguments.add().value.CopyFrom(_text_list(labels))
    operation.attributes["name"].CopyFrom(_text("classify"))
    mil = proto.MIL_pb2
    label = operation.outputs.add(name=_LABEL)
    label.type.tensorType.dataType = mil.DataType.STRING
    by_name = operation.outputs.add(name=_LABEL_PROBABILITIES)
    by_name.type.dictionaryType.keyType.tensorType.dataType = mil.DataType.STRING
    by_name.type.dictionaryType.valueType.tensorType.dataType = mil.DataType.FLOAT64
    # An app reads the dictionary: the tensor that it is made from is no output of its own.
    kept = [name for name in block.outputs if name != probabilities]
    del block.outputs[:]
    block.outputs.extend([_LABEL, _LABEL_PROBABILITIES, *kept])

    description = spec.description
    features = [feature for feature in description.output if feature.name != probabilities]
    class_label = proto.Model_pb2.FeatureDescription(name=_LABEL, shortDescription="likeliest class")
    class_label.type.stringType.SetInParent()
    by_class = proto.Model_pb2.FeatureDescription(
        name=_LABEL_PROBABILITIES, shortDescription="probability of each class"
    )
    by_class.type.dictionaryType.stringKeyType.SetInParent()
    features = [class_label, by_class, *features]
    del description.output[:]
    description.output.extend(features)
    description.predictedFeatureName = _LABEL
    description.predictedProbabilitiesName = _LABEL_PROBABILITIES


def _text(text: str) -> Any:
    value = proto.MIL_pb2.Value()
    value.type.tensorType.dataType = proto.MIL_pb2.DataType.STRING
    value.immediateValue.tensor.strings.values.append(text)
    return value


def _text_list(texts: Sequence[str]) -> Any:
    value = proto.MIL_pb2.Value()
    value.type.listType.type.tensorType.dataType = proto.MIL_pb2.DataType.STRING
    value.type.listType.length.constant.size = len(texts)
    value.immediateValue.list.values.extend(_text(text) for text in texts)
    return value
