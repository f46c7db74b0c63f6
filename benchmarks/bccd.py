"""Blood cells: SSDLite on MobileNetV2 from ImageNet weights, dense, with half the multiplications, in blocks.

    python benchmarks/bccd.py --data BCCD --weights FILE --output runs/bccd

BCCD is the folder of `bccd-coco.tar` (292 + 72 photographs, three classes, MIT), FILE the ImageNet weights of
timm's mobilenetv2_100 with padding "same". Two cores train it in less than two hours. The page in
docs/results/ is made of the run folder by `python benchmarks/bccd_page.py RUN`.
"""

import sys
from pathlib import Path

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import Augment, TrainConfig

RECIPE = Recipe(
    model="ssdlite/timm/mobilenetv2_100",
    task="detection",
    padding="same",
    image_size_px=320,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    body_learning_rate=0.3,
    augment=Augment(shift_px=16, flip=True),
    # Many small steps: there are few photographs. They begin small, which saves half of the time.
    dense=TrainConfig(epochs=16, batch_size=4, learning_rate=1.5e-3, first_px=192),
    variants={
        "channels": Variant(
            macs_left=0.5,
            distill=0.5,
            fit=TrainConfig(epochs=7, batch_size=4, learning_rate=1e-3, first_px=224),
        ),
        "block75": Variant(
            sparsity=0.75,
            block=(1, 4),
            # The same share of zeros in every layer loses 4.2 points in 7 epochs.
            allocation="erdos-renyi",
            distill=0.5,
            fit=TrainConfig(epochs=8, batch_size=4, learning_rate=2e-3, first_px=224),
        ),
    },
    targets=("coreml-ios16", "coreml-ios18-int8", "litert-arm64", "litert-arm64-int8"),
    budget=Budget(drop_points={"map": 3.0}),
    output=Path("runs/bccd"),
)

if __name__ == "__main__":
    sys.exit(run_recipe(RECIPE, __doc__))
