"""A small made-up report: three variants on two Core ML and two LiteRT targets, and all else there may be."""

from __future__ import annotations

from typing import Any

from edgeprune.evaluation.records import (
    ClassTop1,
    Condition,
    Confusion,
    Examination,
    Robustness,
    Row,
    Sample,
    Training,
)
from edgeprune.report.records import Bench, LayerDrops, Report, Sensitivity, Timing

TARGETS = ("coreml-ios16", "coreml-ios18-int8", "litert-arm64", "litert-arm64-int8")


BYTES = {
    "dense": (3_190_112, 1_702_344, 6_203_148, 1_688_920),
    "block80": (1_120_331, 742_108, 2_131_016, 871_204),
    "channels": (1_533_920, 861_733, 2_890_220, 842_172),
}


CORRECT = {"dense": (447, 446, 447, 447), "block80": (448, 448, 448, 447), "channels": (445, 445, 445, 444)}


IMAGES = 450


def make_row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "variant": "block80",
        "target": "litert-arm64",
        "path": "files/block80-litert-arm64.tflite",
        "bytes": 2_131_016,
        "metric": "top1",
        "score": 0.99,
        "drop_points": 0.25,
        "agreement": 0.9912,
        "max_relative_error": 0.000312,
        "zero_fraction": 0.7512,
        "prunable_zero_fraction": 0.7961,
        "bits_per_weight": 2.613,
        "sparse_runtime": True,
        "sparse_runtime_reason": None,
        "images": IMAGES,
        "sha256": "5f" * 32,
        "input_range": (0.0, 255.0),
        "layers": (),
        "download_bytes": 1_702_311,
    }
    return Row(**(values | changes))


def _layers(variant: str, bits: float) -> tuple[dict[str, Any], ...]:
    zeros = 0.8 if variant == "block80" else 0.0
    facts = [
        ("features.0.0", "conv", [16, 3, 3, 3], 0.0013),
        ("features.1.0", "conv1x1", [72, 24, 1, 1], zeros),
    ]
    facts.append(("classifier.3", "linear", [10, 1024], zeros / 2))
    return tuple(
        {
            "name": name,
            "kind": kind,
            "shape": shape,
            "zero_fraction": fraction,
            "bits_per_weight": bits * (1.03 - fraction),
            "encoding": "sparse int8" if fraction > 0.1 else "float16",
            "note": "10 outputs are no multiple of 4" if kind == "linear" else None,
        }
        for name, kind, shape, fraction in facts
    )


def _row(variant: str, place: int) -> Row:
    target, top1 = TARGETS[place], CORRECT[variant][place] / IMAGES
    sparse: bool | None = variant == "block80"
    reason = None if sparse else "no weight is stored sparse"
    if sparse and target.startswith("coreml"):
        sparse, reason = None, "Core ML does not say which kernels it takes"
    return make_row(
        variant=variant,
        target=target,
        path=f"files/{variant}-{target}" + (".tflite" if "litert" in target else ".mlpackage"),
        bytes=BYTES[variant][place],
        download_bytes=BYTES[variant][place] * 9 // 10,
        score=top1,
        drop_points=100 * (447 / IMAGES - top1),
        agreement=1 - 0.01 * place,
        max_relative_error=0.00031 * 7**place,
        zero_fraction=0.7512 if variant == "block80" else 0.0004,
        prunable_zero_fraction=0.7961 if variant == "block80" else 0.0,
        bits_per_weight=(16.2, 8.31, 32.04, 8.42)[place],
        sparse_runtime=sparse,
        sparse_runtime_reason=reason,
        sha256=f"{place + len(variant):02x}" * 32,
        layers=_layers(variant, (16.0, 8.0, 32.0, 8.0)[place]),
    )


def _robustness(variant: str) -> Robustness:
    lost = {"dense": 0.0, "block80": 0.0125, "channels": 0.21}[variant]
    conditions = [("noise", 0.05, 0.9731), ("noise", 0.2, 0.7613), ("rotation", 15.0, 0.8689)]
    return Robustness(
        images=400,
        image_source="a fixed subset of the held-out images",
        top1=CORRECT[variant][0] / IMAGES,
        conditions=tuple(
            Condition(name, strength, "degrees" if name == "rotation" else "standard deviation", top1 - lost)
            for name, strength, top1 in conditions
        ),
        classes=tuple(
            ClassTop1(name, images, 0.9877, 0.8765 - lost * share)
            for name, images, share in (("cat", 131, 1.3), ("dog", 133, 0.1), ("newt", 136, -0.3))
        ),
    )


def _examination(variant: str) -> Examination:
    wrong = 3 + len(variant)
    return Examination(
        variant=variant,
        weights_sha256="c1" * 32,
        dense_sha256="d2" * 32,
        images=IMAGES,
        both_right=IMAGES - 2 * wrong,
        only_dense_right=wrong,
        only_variant_right=wrong - 2,
        confusions=(
            Confusion("cat", "newt", wrong - 1, 1, 148, (7, 211)),
            Confusion("dog", "cat", 1, 0, 151, (7,)),
        ),
        samples=()
        if variant == "dense"
        else (
            Sample(211, "cat", "cat", 0.8123, "newt", 0.5467),
            Sample(12, "dog", "cat", 0.4321, "dog", 0.6789),
        ),
        robustness=_robustness(variant),
    )


def _sensitivity() -> Sensitivity:
    return Sensitivity(
        block=(1, 4),
        images=350,
        image_source="fixed subset of the training images",
        metric="top1",
        score=0.9971,
        sparsities=(0.5, 0.95),
        layers=(
            LayerDrops("features.1.0", 1728, (0.2857, 31.4286)),
            LayerDrops("classifier.3", 10_240, (-0.2857, 0.0)),
        ),
        left_dense={"head.0": "7 inputs are not a multiple of 4"},
    )


def _bench(runtime: str) -> Bench:
    timed = [(variant, ms) for variant, ms in (("dense", 1.2345), ("block80", 0.4567), ("channels", 0.6789))]
    return Bench(
        source=f"bench-{runtime}.json",
        runtime=runtime,
        description=f"LiteRT on {runtime}",
        version="LiteRT 2.1.0",
        emulated=runtime == "arm64",
        processor="Some CPU",
        threads=1,
        rounds=20,
        timings=tuple(
            Timing(
                f"files/{variant}-litert-arm64.tflite", ms, (ms - 0.0321, ms + 0.0654), int(7_654_321 * ms)
            )
            for variant, ms in timed
        ),
    )


def make_report(budget: dict[str, Any] | None = None) -> Report:
    epochs = 6
    return Report(
        recipe={"model": "mobilenet_v3_small", "seed": 7, "data": {"image_size_px": 64}, "budget": budget},
        environment={
            "python": "3.11.7",
            "cores": 2,
            "command": "python recipes/mobilenet_v3_small.py --seed 7",
            "data": {
                "source": "digits",
                "train_images": 1347,
                "held_out_images": IMAGES,
                "sha256": "ab" * 32,
            },
        },
        rows=tuple(_row(variant, place) for variant in BYTES for place in range(len(TARGETS))),
        trainings=tuple(
            Training(
                variant=variant,
                metric="top1",
                score=CORRECT[variant][0] / IMAGES,
                parameters=1_528_106 - 700_000 * (variant == "channels"),
                macs=5_812_345,
                seconds=94.2,
                trained_on="Some GPU, 2 processes",
                epochs=tuple(
                    {
                        "epoch": i,
                        "loss": 2.0 / i,
                        "top1": 1 - 0.5 / i,
                        "sparsity": 0.8 * (variant == "block80"),
                    }
                    for i in range(1, epochs + 1)
                ),
            )
            for variant in BYTES
        ),
        analyses=tuple(map(_examination, BYTES)),
        sensitivity=_sensitivity(),
        benches=(_bench("arm64"),),
    )
