"""LR-ASPP on MobileNetV3-Large, which names a class for each pixel, pruned and fine-tuned, as files.

    python recipes/lraspp_mobilenet_v3_large.py                                  # scenes of digits
    python recipes/lraspp_mobilenet_v3_large.py --data IMAGES --output runs/mine # train/ and val/ in it
    python recipes/lraspp_mobilenet_v3_large.py --weights default --data IMAGES  # published ones, or a file
    python recipes/lraspp_mobilenet_v3_large.py --checkpoint dense.pt --data IMAGES

IMAGES has train/images/NAME.jpg with train/masks/NAME.png, the index of each pixel's class, 255 where it does
not count; val/ likewise; and, if the classes have names, classes.txt with a name a line.

The dense model is trained (or loaded), then made small in two ways: zeros in blocks, which every runtime
here stores small, and channels removed, which makes every kernel smaller. Each becomes a file for every
target; each file is run on the held-out images; the report says which to ship.

Its dilated convolutions keep LiteRT's sparse kernels from running: the report names them. Zeros save bytes
there, removed channels time as well.
"""

import sys
from pathlib import Path

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig

RECIPE = Recipe(
    model="lraspp_mobilenet_v3_large",
    task="segmentation",
    image_size_px=96,
    # Images that begin at half their size: twice as many are seen in the same time.
    dense=TrainConfig(epochs=20, batch_size=16, learning_rate=2e-3, first_px=48),
    variants={
        # 80 % zeros, one output by four input channels: small in both formats.
        "block80": Variant(
            sparsity=0.8,
            block=(1, 4),
            fit=TrainConfig(epochs=10, batch_size=16, learning_rate=2e-3, first_px=64),
        ),
        # A third of the channels less leaves about two fifths of the weights.
        "channels": Variant(
            channels=0.35, fit=TrainConfig(epochs=10, batch_size=16, learning_rate=2e-3, first_px=64)
        ),
    },
    budget=Budget(
        bytes={
            "coreml-ios16": 2_500_000,
            "coreml-ios18-int8": 1_600_000,
            "litert-arm64": 4_500_000,
            "litert-arm64-int8": 1_600_000,
        },
        drop_points={"miou": 2.0},
    ),
    output=Path("runs/lraspp_mobilenet_v3_large"),
)

if __name__ == "__main__":
    sys.exit(run_recipe(RECIPE, __doc__))
