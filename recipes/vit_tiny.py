"""A small vision transformer, ViT-Tiny of timm, pruned and fine-tuned, as Core ML and LiteRT files.

    python recipes/vit_tiny.py                                  # the embedded digits
    python recipes/vit_tiny.py --data IMAGES --output runs/mine # train/ and val/ in it
    python recipes/vit_tiny.py --weights default --data IMAGES  # published ones, or a file
    python recipes/vit_tiny.py --checkpoint dense.pt --data IMAGES

The dense model is trained (or loaded), then made small in two ways: zeros in blocks of the linear layers, and
attention heads and width of the MLPs removed. Each becomes a file for every target; each file is run on the
held-out images; the report says which to ship. LiteRT runs its linear layers dense: zeros save bytes there.
"""

import sys
from pathlib import Path

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig

RECIPE = Recipe(
    model="timm/vit_tiny_patch16_224",
    dense=TrainConfig(epochs=20, learning_rate=1e-3),
    variants={
        # 80 % zeros in the linear layers, one output by four inputs.
        "block80": Variant(sparsity=0.8, block=(1, 4), fit=TrainConfig(epochs=15, learning_rate=1e-3)),
        # One head of three, and a third of each MLP.
        "channels": Variant(channels=0.35, fit=TrainConfig(epochs=10, learning_rate=1e-3)),
    },
    budget=Budget(
        bytes={
            "coreml-ios16": 8_000_000,
            "coreml-ios18-int8": 4_500_000,
            "litert-arm64": 15_000_000,
            "litert-arm64-int8": 5_000_000,
        },
        drop_points={"top1": 1.0},
    ),
    output=Path("runs/vit_tiny"),
)

if __name__ == "__main__":
    sys.exit(run_recipe(RECIPE, __doc__))
