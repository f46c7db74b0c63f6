"""Run folders made by hand: real `.tflite` files, and a report of what is in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from converters import litert
from converters.facts import download_bytes, sha256
from edgeprune.evaluation.records import Row
from edgeprune.report import records
from edgeprune.report.records import Report
from tests.support.networks import Network
from tests.support.reports import make_row

SIZE_PX = 32
TARGET = "litert-arm64"


def write_network(path: Path, width: int = 64, zeros: tuple[float, ...] = (0.0, 0.0)) -> Path:
    """A network with a 1x1 convolution for each of `zeros`, its share of zeros."""
    net = Network(SIZE_PX)
    x = net.stem(16)
    for share in zeros:
        x = net.depthwise(net.conv(x, width, zeros=share))
    for number, tensor in enumerate(net.graph.tensors):
        if tensor.name == "w":
            tensor.name = f"layer.{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(net.finish(net.linear(net.flatten(net.mean(x)), 10)))
    return path


def write_run(folder: Path, variants: Mapping[str, tuple[float, ...]], drops: Mapping[str, float]) -> Path:
    """A finished run of one target.

    Args:
        folder: where.
        variants: the zeros of each variant's layers, see `write_network`.
        drops: the points of accuracy each variant loses.
    """
    rows = []
    for variant, zeros in variants.items():
        path = write_network(folder / "files" / f"{variant}-{TARGET}.tflite", zeros=zeros)
        rows.append(row_of(folder, path, variant, drops.get(variant, 0.0)))
    records.write(Report(recipe={"model": "m", "budget": {}}, environment={}, rows=tuple(rows)), folder)
    return folder


def row_of(folder: Path, path: Path, variant: str, drop_points: float = 0.0) -> Row:
    found = litert.inspect(path)
    return make_row(
        variant=variant,
        target=TARGET,
        path=path.relative_to(folder).as_posix(),
        bytes=found.bytes,
        sha256=sha256(path),
        score=0.9 - drop_points / 100,
        drop_points=drop_points,
        download_bytes=download_bytes(path),
        zero_fraction=found.zero_fraction,
        bits_per_weight=found.bits_per_weight,
        layers=tuple({**dataclasses.asdict(layer), "shape": list(layer.shape)} for layer in found.layers),
    )
