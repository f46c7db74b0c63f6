"""What python_versions.sh tries in each environment: pruned files of both formats.

python benchmarks/python_versions_convert.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from converters import coreml, litert
from edgeprune import pruning


def main(folder: Path) -> None:
    """Write both files, run them, and compare with torch."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    pruning.prune(model, pruning.Block(out=1, in_=4), 0.8)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    for converter, name, target, allowed in (
        (litert, "model.tflite", "litert-arm64", 1e-4),
        (coreml, "model.mlpackage", "coreml-ios16", 1e-2),
    ):
        converter.convert(model, images, folder / name, target=target)
        found = torch.from_numpy(converter.load(folder / name).predict(images.numpy()))
        torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)
        print(
            f"{sys.version.split()[0]}: {name}, zeros "
            + ", ".join(f"{layer.zero_fraction:.2f}" for layer in converter.inspect(folder / name).layers)
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
