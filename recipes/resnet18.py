"""ResNet-18, pruned and fine-tuned, as Core ML and LiteRT files.

    python recipes/resnet18.py                                  # the embedded digits
    python recipes/resnet18.py --data IMAGES --output runs/mine # train/ and val/ in it
    python recipes/resnet18.py --weights default --data IMAGES  # published ones, or a file
    python recipes/resnet18.py --checkpoint dense.pt --data IMAGES

Nearly all of its weights are in 3x3 convolutions, which no runtime here runs sparse: zeros save bytes in Core
ML packages, removed channels bytes and time everywhere. Each variant becomes a file for every target, each
file is run on the held-out images, and the report says which to ship.
"""

import sys
from pathlib import Path

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig

RECIPE = Recipe(
    model="resnet18",
    dense=TrainConfig(epochs=12, learning_rate=2e-3),
    variants={
        # 80 % zeros in the 3x3 convolutions as well, all but the first.
        "block80": Variant(
            sparsity=0.8,
            block=(1, 4),
            layers={"layer*.conv*": 0.8},
            fit=TrainConfig(epochs=10, learning_rate=2e-3),
        ),
        # Half of the multiplications go, with the channels that matter least for what they cost.
        "channels": Variant(macs_left=0.5, fit=TrainConfig(epochs=10, learning_rate=2e-3)),
    },
    budget=Budget(
        bytes={
            "coreml-ios16": 9_000_000,
            "coreml-ios18-int8": 6_000_000,
            "litert-arm64": 13_000_000,
            "litert-arm64-int8": 6_000_000,
        },
        drop_points={"top1": 1.0},
    ),
    output=Path("runs/resnet18"),
)

if __name__ == "__main__":
    sys.exit(run_recipe(RECIPE, __doc__))
