"""EfficientNet-Lite0 of timm, pruned and fine-tuned, as Core ML and LiteRT files.

    python recipes/efficientnet_lite0.py                                  # the embedded digits
    python recipes/efficientnet_lite0.py --data IMAGES --output runs/mine # train/ and val/ in it
    python recipes/efficientnet_lite0.py --weights default --data IMAGES  # published ones, or a file
    python recipes/efficientnet_lite0.py --checkpoint dense.pt --data IMAGES

The dense model is trained (or loaded), then made small in two ways: zeros in blocks, which every runtime
here stores small and can skip, and channels removed, which makes every kernel smaller. Each becomes a file
for every target; each file is run on the held-out images; the report says which to ship.
"""

import sys
from pathlib import Path

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig

RECIPE = Recipe(
    # Google's own variant: padded as TensorFlow pads, which is what LiteRT's convolutions do by themselves.
    model="timm/tf_efficientnet_lite0",
    dense=TrainConfig(epochs=20, learning_rate=3e-3),
    variants={
        # 80 % zeros, one output by four input channels: small in both formats, and past the two thirds
        # at which LiteRT's CPU kernels turn sparse.
        "block80": Variant(sparsity=0.8, block=(1, 4), fit=TrainConfig(epochs=20)),
        # Half of the multiplications go, with the channels that matter least for what they cost.
        "channels": Variant(macs_left=0.5, fit=TrainConfig(epochs=15)),
    },
    budget=Budget(
        bytes={
            "coreml-ios16": 3_000_000,
            "coreml-ios18-int8": 2_100_000,
            "litert-arm64": 6_000_000,
            "litert-arm64-int8": 2_200_000,
        },
        drop_points={"top1": 1.0},
    ),
    output=Path("runs/efficientnet_lite0"),
)

if __name__ == "__main__":
    sys.exit(run_recipe(RECIPE, __doc__))
