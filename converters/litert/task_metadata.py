"""Names of classes and normalisation as MediaPipe and the Task Library read them: TFLITE_METADATA.

A second flatbuffer in the file's metadata, by the published schema (metadata_schema.fbs of MediaPipe), and a
zip archive with the labels behind the file, where those readers look for it. The file's own entry, which says
the same and more, stays. It costs some hundred bytes, and a few more where scales shared a vector of zeros.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.errors import UserError
from converters.facts import InputSpec, Normalization
from converters.files import replacing
from converters.litert import metadata
from converters.litert.evaluation import image_input
from converters.litert.graph import Graph, read_file
from converters.litert.lowering import MAX_PIXEL

NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"
LABELS = "labels.txt"
PARSER_VERSION = "1.0.0"
# Of the schema: AssociatedFileType, ColorSpaceType, ContentProperties and ProcessUnitOptions.
TENSOR_AXIS_LABELS, RGB, FEATURES, IMAGE, NORMALIZATION = 2, 1, 1, 2, 1
# Archives of the same labels have the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)


def add_task_metadata(path: Path | str) -> Path:
    """Add TFLITE_METADATA to a file that edgeprune wrote, in place, and return its path.

    Raises:
        UserError: it is no such file, has it already, names no classes, does not say how pixels are
            normalised, or leaves it to the app with other values for each channel.
    """
    path = Path(path)
    graph = read_file(path)
    spec, _ = image_input(graph, path)
    problems = [f"{path}: it has {NAME} already"] * (NAME in metadata.names(graph))
    problems += [f"{path}: it names no classes: convert it with labels"] * (spec.labels is None)
    if spec.range is None and spec.normalization is None:
        problems.append(f"{path}: it does not say how pixels are normalised")
    if spec.range is None and spec.normalization is not None and not _alike(spec.normalization):
        problems.append(
            f"{path}: its channels are normalised differently, which MediaPipe does not do: convert it with "
            "the normalisation folded in"
        )
    if problems or spec.labels is None:
        raise UserError(problems)
    _append(graph, _describe(graph, spec))
    with replacing(path) as temporary:
        temporary.write_bytes(_with_archive(graph.to_bytes(), spec.labels))
    return path


def _alike(normalization: Normalization) -> bool:
    return len(set(normalization.mean)) == len(set(normalization.std)) == 1


def _append(graph: Graph, content: bytes) -> None:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    graph.model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = NAME, len(graph.model.buffers) - 1
    graph.model.metadata = [*(graph.model.metadata or ()), entry]


def _with_archive(content: bytes, labels: Sequence[str]) -> bytes:
    file = io.BytesIO(content)
    file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file, "a") as archive:  # not compressed: MediaPipe maps it into memory
        archive.writestr(zipfile.ZipInfo(LABELS, DATE), "\n".join(labels) + "\n")
    return file.getvalue()


def _describe(graph: Graph, spec: InputSpec) -> bytes:
    """The metadata flatbuffer: one image in, one tensor of classes out. Slots are those of the schema."""
    builder = flatbuffers.Builder(1024)
    image = _tensor(
        builder,
        graph.name(int(graph.subgraph.inputs[0])),
        _content(builder, IMAGE, _table(builder, 2, {0: (builder.PrependInt8Slot, RGB)})),
        unit=_normalization(builder, spec),
    )
    labels = _table(
        builder, 5, {0: _reference(builder, LABELS), 2: (builder.PrependInt8Slot, TENSOR_AXIS_LABELS)}
    )
    scores = _tensor(
        builder,
        graph.name(int(graph.subgraph.outputs[0])),
        _content(builder, FEATURES, _table(builder, 0, {})),
        file=labels,
    )
    subgraph = _table(
        builder,
        10,
        {2: (_offset(builder), _vector(builder, [image])), 3: (_offset(builder), _vector(builder, [scores]))},
    )
    model = _table(
        builder,
        8,
        {
            0: _reference(builder, "edgeprune"),
            3: (_offset(builder), _vector(builder, [subgraph])),
            7: _reference(builder, PARSER_VERSION),
        },
    )
    builder.Finish(model, IDENTIFIER)
    return bytes(builder.Output())


def _normalization(builder: Any, spec: InputSpec) -> int:
    """(pixel - mean) / std of pixels in [0, 255], alike for all channels; none where the file does it."""
    mean, std = 0.0, 1.0
    if spec.range is None and spec.normalization is not None:
        mean, std = (MAX_PIXEL * side[0] for side in (spec.normalization.mean, spec.normalization.std))
    means, stds = (builder.CreateNumpyVector(np.array([value], np.float32)) for value in (mean, std))
    options = _table(builder, 2, {0: (_offset(builder), means), 1: (_offset(builder), stds)})
    return _table(builder, 2, {0: (builder.PrependUint8Slot, NORMALIZATION), 1: (_offset(builder), options)})


def _tensor(
    builder: Any, name: str, content: int, *, unit: int | None = None, file: int | None = None
) -> int:
    fields = {0: _reference(builder, name), 3: (_offset(builder), content)}
    if unit is not None:
        fields[4] = (_offset(builder), _vector(builder, [unit]))
    if file is not None:
        fields[6] = (_offset(builder), _vector(builder, [file]))
    return _table(builder, 7, fields)


def _content(builder: Any, kind: int, properties: int) -> int:
    return _table(builder, 3, {0: (builder.PrependUint8Slot, kind), 1: (_offset(builder), properties)})


def _table(builder: Any, slots: int, fields: dict[int, tuple[Any, int]]) -> int:
    """A table of the schema: its fields by slot, each with what writes it."""
    builder.StartObject(slots)
    for slot, (write, value) in fields.items():
        write(slot, value, 0)
    end: int = builder.EndObject()
    return end


def _vector(builder: Any, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    end: int = builder.EndVector()
    return end


def _reference(builder: Any, text: str) -> tuple[Any, int]:
    return _offset(builder), builder.CreateString(text)


def _offset(builder: Any) -> Any:
    return builder.PrependUOffsetTRelativeSlot
