"""SSDLite on MobileNetV3-Small, which finds boxes with a class each, pruned and fine-tuned, as files.

    python recipes/ssdlite_mobilenet_v3_small.py                                  # scenes of digits
    python recipes/ssdlite_mobilenet_v3_small.py --data IMAGES --output runs/mine # COCO, Pascal VOC or YOLO
    python recipes/ssdlite_mobilenet_v3_small.py --weights default --data IMAGES  # published ones, or a file
    python recipes/ssdlite_mobilenet_v3_small.py --model ssdlite/timm/efficientnet_lite0 --data IMAGES

IMAGES is a folder in COCO's layout (annotations/instances_train.json), Pascal VOC's (Annotations/NAME.xml) or
YOLO's (labels/train/NAME.txt), as it is; small objects want a larger --image-size-px, 320 as a rule.

The dense model is trained (or loaded), then made small in two ways: zeros in blocks, which every runtime
here stores small, and channels removed through backbone, extra levels and heads, which makes every kernel
smaller. Each becomes a file for every target, measured by COCO's mean average precision on the held-out
images; the report says which to ship.

A file gives rows: for each anchor how the box differs from it, and the classes' logits; its metadata says how
an app makes boxes of them. Several maps leave the backbone, which keeps LiteRT's sparse kernels from
running: zeros save bytes there, removed channels time as well.
"""

import sys
from pathlib import Path

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig

RECIPE = Recipe(
    model="ssdlite/mobilenet_v3_small",
    task="detection",
    image_size_px=96,
    dense=TrainConfig(epochs=30, batch_size=16, learning_rate=3e-3),
    variants={
        # 80 % zeros, one output by four input channels: small in both formats. Small layers get
        # fewer of them (Erdős-Rényi): shared out evenly they cost a detector far more.
        "block80": Variant(
            sparsity=0.8,
            block=(1, 4),
            allocation="erdos-renyi",
            fit=TrainConfig(epochs=20, batch_size=16, learning_rate=3e-3),
        ),
        # Half of the multiplications go, with the channels that matter least for what they cost.
        "channels": Variant(macs_left=0.5, fit=TrainConfig(epochs=12, batch_size=16, learning_rate=2e-3)),
    },
    targets=("coreml-ios16", "coreml-ios18-int8", "litert-arm64", "litert-arm64-int8"),
    budget=Budget(
        bytes={
            "coreml-ios16": 1_600_000,
            "coreml-ios18-int8": 1_100_000,
            "litert-arm64": 3_000_000,
            "litert-arm64-int8": 1_000_000,
        },
        drop_points={"map": 5.0},
    ),
    output=Path("runs/ssdlite_mobilenet_v3_small"),
)

if __name__ == "__main__":
    sys.exit(run_recipe(RECIPE, __doc__))
