"""What pruning costs: masks of a 100-million-weight model, and `Sparsifier.step()` beside a training step.

    python benchmarks/pruning_speed.py [--threads 2] [--steps 20] [--output docs/results/pruning_speed.md]

Goals: masks in under 2 s on 2 cores; `step()`, choosing masks anew every 10 steps, at most 3 % of a training
step of MobileNetV3-Large at 224 px, batch 32. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from litert_files import provenance, table
from torch import nn
from torch.nn import functional as F

from converters.files import write_text
from edgeprune.models import build as models
from edgeprune.pruning import Block, Channels, Cubic, NofM, Pattern, Rule, Sparsifier, Unstructured, prune

SIDE, LAYERS = 5000, 4  # 100 million weights
PATTERNS: list[tuple[Pattern, float]] = [
    (Unstructured(), 0.8),
    (Block(out=1, in_=4), 0.8),
    (Block(out=4, in_=1), 0.8),
    (NofM(keep=2, of=4), 0.5),
    (Channels(), 0.5),
]
WAYS = {
    "magnitude": {},
    "magnitude, regrowing": {"regrow": True},
    "movement": {"criterion": "movement"},
    "taylor": {"criterion": "taylor"},
}
ROUNDS = 3
EVERY = 10


def masks() -> list[str]:
    """Time masks alone, and `prune` as a whole, which ranks, checks and zeroes too."""
    layers = [nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS)]
    model = nn.Sequential(*layers)
    count = sum(layer.weight.numel() for layer in layers)
    rows = []
    for pattern, sparsity in PATTERNS:
        mask_seconds, prune_seconds = [], []
        for _ in range(ROUNDS):
            for layer in layers:
                layer.weight.data.normal_()
            began = time.perf_counter()
            for layer in layers:
                pattern.mask(layer.weight.detach().abs(), sparsity)
            mask_seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
            achieved = prune(model, pattern, sparsity, layers=["*"])
            prune_seconds.append(time.perf_counter() - began)
            assert all(abs(zeros - sparsity) < 1e-3 for zeros in achieved.values())
        rows.append(
            (f"`{pattern}`", f"{sparsity:.0%}", f"{min(mask_seconds):.2f}", f"{min(prune_seconds):.2f}")
        )
    return [
        f"## {count:,} weights",
        "",
        f"In {LAYERS} layers, the best of {ROUNDS}.",
        "",
        *table(("pattern", "zeros", "masks, s", "all of `prune`, s"), rows),
    ]


def steps(count: int) -> list[str]:
    """Time `step()` inside a training, against everything else of it."""
    rows = []
    for way, settings in WAYS.items():
        torch.manual_seed(0)
        model = models.build("mobilenet_v3_large", 1000).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        sparsifier = Sparsifier(
            model, [Rule(Block(1, 4), 0.8)], Cubic(steps=10 * count, every=EVERY), **settings
        )
        images = torch.randn(32, 3, 224, 224).to(memory_format=torch.channels_last)
        labels = torch.arange(32)
        training, pruning = [], []
        for _ in range(count + 1):
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            stepped = time.perf_counter()
            sparsifier.step()
            training.append(stepped - began)
            pruning.append(time.perf_counter() - stepped)
        # The first step warms up; it chooses masks, as does every tenth behind it.
        choosing = pruning[EVERY::EVERY]
        train_seconds, prune_seconds = sum(training[1:]) / count, sum(pruning[1:]) / count
        share = prune_seconds / train_seconds
        chosen = sum(choosing) / len(choosing)
        rows.append((way, f"{train_seconds:.3f}", f"{prune_seconds:.4f}", f"{share:.2%}", f"{chosen:.4f}"))
    heading = ("criterion", "training step, s", "`step()`, s", "share", "`step()` that chooses masks, s")
    return [
        "## `Sparsifier.step()` in a training",
        "",
        f"MobileNetV3-Large, 224 px, batch 32, {count} steps, 80 % in 1x4 blocks, masks every {EVERY} steps.",
        "",
        *table(heading, rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="training steps measured, 10 or more")
    parser.add_argument("--output", type=Path, help="Markdown file to write; none: only print")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = provenance()
    lines = [
        "# What pruning costs",
        "",
        f"Made by `{facts['command']}` on {facts['processor']}, {arguments.threads} thread(s), torch "
        f"{torch.__version__}. At most 2 s for the masks and 3 % of a training step are asked for.",
        "",
        *masks(),
        "",
        *steps(max(arguments.steps, EVERY)),
    ]
    print("\n".join(lines))
    if arguments.output:
        write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
