"""Installed and download bytes of the same weights stored three ways, for docs/results/download_size.md.

    python benchmarks/download_size.py --cache FOLDER

MobileNetV3-Small for 1000 classes with random weights, dense and with 80 % zeros in 1x4 blocks: dense as it
is, the zeros stored one by one (what the vendors' converters write), and left out (what edgeprune writes).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from converters.facts import download_bytes, size_bytes
from converters.format import FORMATS
from converters.litert.conversion import prepare
from converters.targets import TARGETS
from edgeprune import pruning

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "download_size.md"
EXAMPLE = torch.zeros(1, 3, 64, 64)
SPARSITY = 0.8
# Stored, and the targets that store so: dense values, zeros left out.
ROWS = (
    ("LiteRT float32", "plain litert", "litert-arm64"),
    ("LiteRT int8", "litert-arm64-static-int8", "litert-arm64-int8"),
    ("Core ML float16", "plain coreml", "coreml-ios16"),
    ("Core ML int8", "int8 coreml", "coreml-ios18-int8"),
)


def main() -> None:
    """Write the files, measure them, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    cache = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    dense = mobilenet_v3_small(weights=None).eval()
    pruned = copy.deepcopy(dense)
    pruning.prune(pruned, pruning.Block(1, 4), SPARSITY)
    lines = []
    for title, plain, sparse in ROWS:
        ways = ((dense, plain), (pruned, plain), (pruned, sparse))
        sizes = [measured(write(model, how, cache)) for model, how in ways]
        lines.append(f"| {title} | {' | '.join(sizes)} |")
        print(lines[-1], flush=True)
    OUTPUT.write_text(PAGE.format(rows="\n".join(lines)))


def measured(file: Path) -> str:
    return f"{size_bytes(file):,} | {download_bytes(file):,}"


def write(model: nn.Module, how: str, folder: Path) -> Path:
    """A file of a target, or, "plain", what the vendor's converter alone writes."""
    if how in TARGETS:
        target = TARGETS[how]
        format = FORMATS[target.format]
        path = folder / f"{how}{format.suffix}"
        images = np.random.default_rng(0).uniform(0, 255, (8, 3, 64, 64)).astype(np.float32)
        prepared = format.prepare(model, EXAMPLE, None)
        calibration = images / 255 if "static" in how else None
        return format.write(prepared, target, path, calibration=calibration).path
    storage, name = how.split()
    path = folder / f"{storage}{FORMATS[name].suffix}"
    if name == "litert":
        path.write_bytes(prepare(model, EXAMPLE).lowered)
        return path
    import coremltools.optimize.coreml as cto

    prepared = FORMATS[name].prepare(model, EXAMPLE, None)  # its files go with it
    program = prepared.program("iOS18", False, path.name)
    if storage == "int8":
        config = cto.OptimizationConfig(global_config=cto.OpLinearQuantizerConfig(mode="linear_symmetric"))
        program = cto.linear_quantize_weights(program, config)
    from converters.coreml.package import write_package

    write_package(program.get_spec(), Path(program.weights_dir), path)
    return path


PAGE = """\
# Installed and download bytes

MobileNetV3-Small for 1000 classes at 64 px, random weights. 80 % of the weights of 1x1 convolutions and
fully connected layers are zero, in 1x4 blocks. *Installed* is bytes on disk; *download* is the file deflated
at zlib's default level, which is what Android's bundletool counts and what `zip` writes
(`converters.facts.download_bytes`). Written by `python benchmarks/download_size.py --cache FOLDER`.

| stored as | dense: installed | download | 80 % zeros, one by one: installed | download | \
80 % zeros, left out: installed | download |
|---|--:|--:|--:|--:|--:|--:|
{rows}

Zeros that are stored one by one save nothing on disk and in memory, but the store's compression saves most of
their download. What leaving them out gains for the download is the difference between the second and the
third pair. Whoever holds a sparse file's installed bytes against a dense file's download compares nothing.

"One by one" is the vendor's converter alone: litert-torch; static int8 by its quantizer; coremltools, with
its own int8 pass in the last row.
"""


if __name__ == "__main__":
    main()
