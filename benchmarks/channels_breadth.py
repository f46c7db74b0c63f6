"""Channels killed at random and removed, in many models of timm and torchvision: the answers must not move.

    python benchmarks/channels_breadth.py docs/results/channels_breadth.json [model ...]
    python benchmarks/channels_breadth.py docs/results/channels_breadth.json --page PAGE.md

Every model has random weights, with perturbed batch norms. In each group of channels that go together a
third is killed (what makes them is zeroed; where a shift that all channels share makes something of them
again, and no bias can hold it, what reads them too), and then removed. Per model: how far the answers moved,
what was left and why, whether a fresh model takes the shrunk one's weights, and the seconds it took.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.errors import EdgepruneError
from edgeprune.models.build import build
from edgeprune.pruning import resize, shrink
from edgeprune.pruning.channels.groups import find_groups, tensors_in
from edgeprune.pruning.channels.removal import Trials, undone, zero_makers, zero_readers
from edgeprune.pruning.channels.resting import take_out_at_rest

TORCHVISION = (
    "alexnet", "convnext_tiny", "deeplabv3_mobilenet_v3_large", "densenet121", "efficientnet_b0",
    "efficientnet_v2_s", "googlenet", "inception_v3", "lraspp_mobilenet_v3_large", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf",
    "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_32",
)  # fmt: skip
TIMM = (
    "bat_resnext26ts", "botnet26t_256", "coat_lite_tiny", "convit_tiny", "convmixer_768_32",
    "convnext_atto", "convnextv2_atto", "cs3darknet_s", "csatv2", "cspresnet50",
    "deit_tiny_patch16_224", "dla34", "dpn48b", "eca_resnet33ts", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "efficientnet_lite0", "efficientvit_b0",
    "efficientvit_m0", "ese_vovnet19b_dw", "fasternet_t0", "fastvit_t8", "fastvit_sa12", "fbnetc_100",
    "gcresnet33ts", "gernet_s", "ghostnet_100", "ghostnetv2_100", "ghostnetv3_050", "halonet26t",
    "haloregnetz_b", "hardcorenas_a", "hgnet_tiny", "hgnetv2_b0", "hrnet_w18_small",
    "inception_next_atto", "lambda_resnet26t", "lcnet_050", "levit_128s", "mambaout_femto",
    "mixer_s32_224", "mixnet_s", "mobilenetv3_small_100", "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "nf_regnet_b0",
    "nfnet_f0", "pit_ti_224", "poolformer_s12", "poolformerv2_s12", "pvt_v2_b0", "rdnet_tiny",
    "regnetx_002", "regnety_002", "regnetz_b16", "repghostnet_050", "repvgg_a0", "repvit_m0_9",
    "res2net50_14w_8s", "resmlp_12_224", "resnest14d", "resnet18", "resnetv2_50", "rexnet_100",
    "selecsls42", "semnasnet_075", "seresnet18", "shvit_s1", "skresnet18", "spnasnet_100", "starnet_s1",
    "swiftformer_xs", "tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100", "tinynet_e",
    "tiny_vit_5m_224", "tresnet_m", "vgg11", "visformer_tiny", "vit_tiny_patch16_224", "vovnet39a",
    "wide_resnet50_2", "xcit_nano_12_p16_224", "xception41",
)  # fmt: skip
KILLED = 1 / 3
SIZES_PX = (64, 128, 224, 256, 299)


def model_named(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model with random weights and perturbed batch norms, and the smallest example that it takes."""
    torch.manual_seed(0)
    for size_px in SIZES_PX:
        try:
            model = build(name, 10, size_px).eval()
            example = torch.randn(1, 3, size_px, size_px)
            with torch.no_grad():
                model(example)
        except Exception as error:  # Each model says in its own way that a size is not its own.
            last = error
            continue
        perturb(model, example)
        return model, example
    raise last


def perturb(model: nn.Module, example: torch.Tensor) -> None:
    """Scales and shifts of batch norms at random, statistics measured, so that a signal comes through."""
    generator = torch.Generator().manual_seed(1)
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.weight is not None
    ]
    for norm in norms:
        norm.weight.data = 0.5 + torch.rand(norm.weight.shape, generator=generator)
        norm.bias.data = torch.rand(norm.bias.shape, generator=generator) - 0.5
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    with torch.no_grad():
        model(torch.randn(4, *example.shape[1:], generator=generator))
    for norm, momentum in zip(norms, before, strict=True):
        norm.training, norm.momentum = False, momentum


def kill(model: nn.Module, example: torch.Tensor, seconds: float) -> tuple[list[Any], dict[str, str]]:
    """Zero what makes a third of each group's channels; the cuts that would remove them, and what is left."""
    found = find_groups(model, example, seconds=seconds)
    generator = torch.Generator().manual_seed(2)
    cuts = []
    for group in found.groups:
        units = torch.randperm(len(group), generator=generator)[: max(round(KILLED * len(group)), 1)].tolist()
        cuts.append((group, sorted(units)))
    possible, moving = Trials(model, example, seconds=seconds).possible(cuts)
    # A shift that all channels share may make something of them, which what reads them cannot always hold.
    with undone(model):
        lost = take_out_at_rest(model, example, possible)
    zero_makers(model, possible)
    zero_readers(model, possible, lost)
    return possible, {**found.left, **moving}


def one(name: str, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name}
    begin = time.perf_counter()
    try:
        model, example = model_named(name)
        row["size_px"] = example.shape[-1]
        model = model.double()
        example = example.double()
        row["weights"] = sum(p.numel() for p in model.parameters())
        cuts, left = kill(model, example, seconds)
        row |= {"groups": len(cuts), "left": left}
        with torch.no_grad():
            before = [t.clone() for t in tensors_in(model(example))]
            other = [t.clone() for t in tensors_in(model(example.flip(-1) + torch.randn_like(example)))]
            take_out_at_rest(model, example, cuts)
            after = [t.clone() for t in tensors_in(model(example))]
        spread = max(float((a - b).abs().max()) for a, b in zip(before, other, strict=True))
        row["moved"] = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) / max(
            spread, 1e-300
        )
        row["weights_left"] = sum(p.numel() for p in model.parameters()) / row["weights"]
        row["seconds_killed"] = round(time.perf_counter() - begin, 1)
        row |= shrunk(name, seconds)
    except EdgepruneError as error:
        row["message"] = str(error)
    except Exception as error:
        row["traceback"] = f"{type(error).__name__}: {error}"
    row["seconds"] = round(time.perf_counter() - begin, 1)
    return row


def shrunk(name: str, seconds: float) -> dict[str, Any]:
    """`shrink` by half, and a fresh model that takes what it leaves."""
    model, example = model_named(name)
    fresh = copy.deepcopy(model)
    begin = time.perf_counter()
    widths = shrink(model, example, 0.5, seconds=seconds)
    seconds_taken = round(time.perf_counter() - begin, 1)
    resize(fresh, dict(model.state_dict()))
    with torch.no_grad():
        same = all(
            torch.equal(a, b)
            for a, b in zip(tensors_in(model(example)), tensors_in(fresh(example)), strict=True)
        )
    weights = [sum(p.numel() for p in m.parameters()) for m in (model, model_named(name)[0])]
    return {
        "shrunk_layers": len(widths),
        "shrunk_left": weights[0] / weights[1],
        "shrink_seconds": seconds_taken,
        "reloaded": same,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    killed = [row for row in rows if "moved" in row]
    able = [row for row in rows if "shrunk_layers" in row]
    reloaded = [row for row in able if row["reloaded"]]
    slow = [row for row in able if row["shrink_seconds"] > 60]
    reasons = Counter(reason for row in rows for reason in row.get("left", {}).values())
    moved = [row["moved"] for row in killed]
    messages, tracebacks = (sum(kind in row for row in rows) for kind in ("message", "traceback"))
    lines = [
        "# Removing channels in many models",
        "",
        f"{len(rows)} models of timm and torchvision, random weights, perturbed batch norms, float64. A",
        "third of the channels of every group were zeroed, at random, where they are made, and then removed",
        "(`benchmarks/channels_breadth.py`). Moved: the largest change of the answers over the largest",
        "difference between the answers to two images. Then `shrink` by half, and a fresh model that takes",
        "the weights.",
        "",
        f"- Answers that moved by more than 1e-8 of their spread: {sum(m > 1e-8 for m in moved)} of "
        f"{len(moved)}; the largest {max(moved):.1e}.",
        f"- `shrink` by half: {len(able)} of {len(rows)} models shrank, {messages} gave a message,",
        f"  {tracebacks} a traceback; {len(slow)} took more than 60 s, among other work on two processors.",
        f"- A fresh model took the weights and gave the same answers: {len(reloaded)} of {len(able)}.",
        "",
        "| why a layer was left | layers |",
        "|---|---|",
        *(f"| {reason} | {count} |" for reason, count in reasons.most_common()),
        "",
        "| model | px | moved | weights left by half | layers left whole | seconds to shrink |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    moved = f"{row['moved']:.0e}" if "moved" in row else "–"
    half = f"{100 * row['shrunk_left']:.0f} %" if "shrunk_left" in row else row.get("message", "–")
    half = half.split(":")[0]
    return (
        f"| {row['model']} | {row.get('size_px', '–')} | {moved} | {half} | {len(row.get('left', {}))} | "
        f"{row.get('shrink_seconds', '–')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="*", default=[*TORCHVISION, *(f"timm/{name}" for name in TIMM)])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--page", type=Path, help="write the page from the results that there are")
    options = parser.parse_args()
    if options.page:
        options.page.write_text(page(json.loads(options.output.read_text())))
        return
    rows = json.loads(options.output.read_text()) if options.output.exists() else []
    for name in options.models:
        if any(row["model"] == name for row in rows):
            continue
        row = one(name, options.seconds)
        rows.append(row)
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
        shown = {key: value for key, value in row.items() if key != "left"}
        print(json.dumps(shown), f"left {len(row.get('left', ()))}", flush=True)


if __name__ == "__main__":
    main()
