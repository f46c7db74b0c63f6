"""What zeros, blocks, removed channels and int8 buy where a file runs: bytes, memory, time, and who says so.

For docs and report. "unknown" is where nobody that we know has measured it; ours are measured as the named
page says, on emulated ARM or in a browser: on no phone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

UNKNOWN = "unknown"
MEASURED = "docs/results/litert_patterns.md, litert_channels.md"
XNNPACK = "docs/formats/litert.md"
GPU = (
    "LiteRT's older GPU delegate has a parser for DENSIFY: weights are expanded; the newer one has none any "
    "more (model_builder.cc of both, 2026-11-26)"
)
APPLE = "Apple's coremltools guide, performance of pruned models (read 2026-11-26)"
NOBODY = "no published figure (2026-11-26)"


@dataclass(frozen=True)
class Gain:
    """What one kind of compression buys in one place.

    Attributes:
        place: where the file runs.
        kind: "single zeros", "blocks of 1x4", ...
        bytes, memory, time: what it buys of each, in words.
        source: who says so.
    """

    place: str
    kind: str
    bytes: str
    memory: str
    time: str
    source: str


SINGLE, BLOCKS, CHANNELS, INT8 = "single zeros", "blocks of 1x4", "removed channels", "int8"
LEFT_OUT, FEWER, QUARTER = "left out of the file", "fewer", "a quarter of float32"

_ARM, _WEB = "ARM CPU (LiteRT, XNNPACK)", "browser (LiteRT.js)"
_GPU, _NPU = "Android GPU (LiteRT)", "Android NPU (LiteRT)"
_ANE, _APPLE = "Neural Engine (Core ML)", "Apple GPU and CPU (Core ML)"

GAINS: tuple[Gain, ...] = (
    Gain(
        _ARM, SINGLE, LEFT_OUT, UNKNOWN, "2.2 to 2.5 times as fast at 80 %, if the file qualifies", MEASURED
    ),
    Gain(_ARM, BLOCKS, "the same at a quarter of the indices", UNKNOWN, "1.9 to 2.5 times at 80 %", MEASURED),
    Gain(_ARM, CHANNELS, FEWER, FEWER, "in step with the multiplications left", MEASURED),
    Gain(
        _ARM, INT8, QUARTER, "as float32 where only stored so", "static: 5 times; stored only: none", MEASURED
    ),
    Gain(_WEB, SINGLE, LEFT_OUT, UNKNOWN, "1.8 times as fast at 80 %, if the file qualifies", MEASURED),
    Gain(_WEB, BLOCKS, "the same at a quarter of the indices", UNKNOWN, "2.0 times; 4x1 is slower", MEASURED),
    Gain(_WEB, CHANNELS, FEWER, FEWER, "in step with the multiplications left", MEASURED),
    Gain(_WEB, INT8, QUARTER, "as float32", "stored only: none; integer kernels are slower", MEASURED),
    Gain(_GPU, f"{SINGLE}, {BLOCKS}", LEFT_OUT, "none: expanded", "none: computed dense", GPU),
    Gain(_GPU, CHANNELS, FEWER, FEWER, f"less to compute; how much is {UNKNOWN}", NOBODY),
    Gain(_GPU, INT8, QUARTER, UNKNOWN, UNKNOWN, NOBODY),
    Gain(_NPU, f"{SINGLE}, {BLOCKS}", "left out, where its compiler takes it", UNKNOWN, UNKNOWN, NOBODY),
    Gain(_NPU, CHANNELS, FEWER, FEWER, f"less to compute; how much is {UNKNOWN}", NOBODY),
    Gain(_NPU, INT8, QUARTER, UNKNOWN, "what most NPUs are made for; how much is unknown", NOBODY),
    Gain(_ANE, SINGLE, LEFT_OUT, UNKNOWN, "a little from 75 % on: MobileNetV3-Small 0.13 to 0.12 ms", APPLE),
    Gain(_ANE, BLOCKS, "no less than single ones: a bit for each weight", UNKNOWN, "as single zeros", APPLE),
    Gain(_ANE, CHANNELS, FEWER, FEWER, f"less to compute; how much is {UNKNOWN}", NOBODY),
    Gain(_ANE, INT8, "half of float16", UNKNOWN, UNKNOWN, NOBODY),
    Gain(_APPLE, f"{SINGLE}, {BLOCKS}", LEFT_OUT, UNKNOWN, UNKNOWN, NOBODY),
    Gain(_APPLE, CHANNELS, FEWER, FEWER, f"less to compute; how much is {UNKNOWN}", NOBODY),
    Gain(_APPLE, INT8, "half of float16", UNKNOWN, UNKNOWN, NOBODY),
)
_PLACES = {"arm64": (_ARM, _GPU, _NPU), "web": (_WEB,), "iOS": (_ANE, _APPLE)}


def gains(platforms: Collection[str]) -> list[Gain]:
    """Those for where files of these platforms run; see `converters.targets.Target.platform`."""
    places = [
        place
        for start, known in _PLACES.items()
        for place in known
        if any(platform.startswith(start) for platform in platforms)
    ]
    return [gain for gain in GAINS if gain.place in places]


def markdown() -> str:
    """All of them as a table."""
    lines = ["| where | what | bytes | memory | time | source |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {gain.place} | {gain.kind} | {gain.bytes} | {gain.memory} | {gain.time} | {gain.source} |"
        for gain in GAINS
    ]
    return "\n".join(lines)
