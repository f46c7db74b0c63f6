"""Put many models that nobody here made through the public interface, step by step, and say what fails.

    python benchmarks/breadth.py FOLDER              go on where an earlier call stopped
    python benchmarks/breadth.py FOLDER MODEL ...    these models (again)
    python benchmarks/breadth.py --page FOLDER       docs/results/breadth.md and .json from what is there

Weights are random, the gains and shifts of norms and all biases perturbed, images at most 128 px. A process
for each model; a step that takes longer than its limit is a hang, and ends the process. FOLDER gets one JSON
file a model, written after each step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LIMIT_S = 60
# Conversion is slower where other work shares the processor: waited for, and told.
PATIENCE = int(os.environ.get("BREADTH_PATIENCE", "1"))
STEPS = ("build", "litert", "litert-int8", "coreml", "verify-litert", "verify-int8", "verify-coreml",
         "shrink", "reload", "lint")  # fmt: skip
STRIDE = 7
RESULTS = Path(__file__).parent.parent / "docs" / "results"
BARS = {"build": 1.0, "litert": 0.95, "litert-int8": 0.95, "coreml": 0.95, "verify-litert": 0.95,
        "verify-int8": 0.95, "verify-coreml": 0.95, "shrink": 0.85, "reload": 1.0}  # fmt: skip
SIZES_PX = {
    "vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "mixer_s16_224": 64, "gmlp_ti16_224": 64,
    "resmlp_12_224": 64, "levit_128s": 128, "xcit_nano_12_p16_224": 64, "swin_tiny_patch4_window7_224": 112,
    "pit_ti_224": 64, "cait_xxs24_224": 64, "eva02_tiny_patch14_224": 56,
}  # fmt: skip
TIMM = (
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "efficientnet_lite0",
    "tf_efficientnet_lite0", "efficientnet_b0", "lcnet_050", "mnasnet_100", "mnasnet_small", "semnasnet_050",
    "fbnetc_100", "spnasnet_100", "hardcorenas_a", "tinynet_e", "tinynet_a", "mixnet_s", "rexnet_100",
    "mobilenet_edgetpu_v2_xs", "ghostnet_100", "ghostnetv2_100", "ghostnetv3_100", "repghostnet_050",
    "starnet_s1", "shvit_s1", "fasternet_t0", "mobileone_s0", "repvgg_a0", "repvit_m0_9", "fastvit_t8",
    "levit_128s", "edgenext_xx_small", "efficientvit_b0", "efficientvit_m0", "mobilevit_xxs",
    "mobilevitv2_050", "poolformerv2_s12", "poolformer_s12", "convnext_atto", "convnextv2_atto",
    "inception_next_atto", "rdnet_tiny", "mambaout_femto", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "mixer_s16_224", "gmlp_ti16_224", "resmlp_12_224", "xcit_nano_12_p16_224",
    "pit_ti_224", "cait_xxs24_224", "eva02_tiny_patch14_224", "swiftformer_xs", "efficientformerv2_s0",
    "tiny_vit_5m_224", "pvt_v2_b0", "resnet18", "resnet10t", "resnet26d", "resnetv2_50", "seresnet18",
    "skresnet18", "ecaresnet26t", "res2net50_14w_8s", "resnest14d", "regnetx_002", "regnety_002", "dla34",
    "dla46_c", "densenet121", "vgg11", "hrnet_w18_small", "selecsls42b", "gernet_s", "cspresnet50",
    "cs3darknet_s", "ese_vovnet19b_dw", "hgnetv2_b0", "hgnet_tiny", "dpn48b", "nf_regnet_b0", "xception41",
    "botnet26t_256", "convmixer_768_32",
)  # fmt: skip
TORCHVISION = (
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5", "squeezenet1_1",
    "mnasnet0_5", "googlenet", "resnet18", "alexnet", "lraspp_mobilenet_v3_large",
)  # fmt: skip
MODELS = {**{f"timm/{name}": SIZES_PX.get(name, 128) for name in TIMM},
          **{f"torchvision/{name}": 128 for name in TORCHVISION}}  # fmt: skip

Outcome = dict[str, Any]


def build(name: str) -> Any:
    """The model, in eval mode, its norms and biases perturbed."""
    import timm
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(0)
    source, _, short = name.partition("/")
    size_px = MODELS.get(name, 128)
    if source == "timm":
        sized = {"img_size": size_px} if short in SIZES_PX and short != "levit_128s" else {}
        model = timm.create_model(short, num_classes=10, **sized)
    else:
        options = {"weights_backbone": None} if "lraspp" in short else {}
        if short == "googlenet":
            options = {"aux_logits": False, "init_weights": False}
        model = torchvision.models.get_model(short, weights=None, num_classes=10, **options)
    generator = torch.Generator().manual_seed(1)
    for key, value in model.named_parameters():
        if value.ndim <= 1 or "gamma" in key or "layer_scale" in key:
            value.data += 0.2 * torch.randn(value.shape, generator=generator) * (0.5 + value.data.abs())
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean += 0.1 * torch.randn(module.running_mean.shape, generator=generator)
            module.running_var *= 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return model.eval()


def measure(name: str, path: Path, folder: Path) -> None:
    """All steps of one model, its record written after each."""
    import numpy as np
    import torch

    record: Outcome = {"model": name, "size_px": MODELS.get(name, 128), "steps": {}}
    kept: dict[str, Any] = {}
    size_px = record["size_px"]
    example = torch.rand(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))
    pixels = np.random.default_rng(3).uniform(0, 255, (2, 3, size_px, size_px)).astype(np.float32)

    def converted(target: str) -> None:
        from converters import coreml, litert

        if target.startswith("coreml"):
            coreml.convert(kept["model"], example, folder / "m.mlpackage", target=target)
        else:
            kept.setdefault("lowered", litert.lower(kept["model"], example))
            file = folder / f"{target}.tflite"
            litert.convert(kept["model"], example, file, target=target, lowered=kept["lowered"])

    def verified(file: str) -> None:
        from converters import verify

        runtimes = ("host",) if file.endswith(".tflite") else None
        result = verify.verify(folder / file, pixels, kept["model"], runtimes=runtimes)
        reasons = [*result.problems, *(c.reason for c in result.checks if c.agrees is False and c.reason)]
        record["steps_error"] = result.model_error
        if not result.agrees:
            raise WrongError("; ".join(reasons))

    def shrunk() -> None:
        from edgeprune import pruning

        model = build(name)
        before = sum(p.numel() for p in model.parameters())
        pruning.shrink(model, example, 0.25)
        with torch.no_grad():
            model(example)
        kept["shrunk"] = model
        record["shrunk_to"] = sum(p.numel() for p in model.parameters()) / before

    def reloaded() -> None:
        from edgeprune.models import resize

        fresh = build(name)
        state = kept["shrunk"].state_dict()
        resize.resize(fresh, state)
        fresh.load_state_dict(state)
        with torch.no_grad():
            if not torch.allclose(fresh.eval()(example), kept["shrunk"].eval()(example), atol=1e-5):
                raise WrongError("the reloaded model gives other answers")

    def linted() -> None:
        from converters import litert

        verdict = litert.lint(folder / "litert-arm64.tflite")
        record["sparse"] = verdict.sparse
        record["problems"] = [str(problem) for problem in verdict.problems[:3]]

    actions: dict[str, Callable[[], None]] = {
        "build": lambda: kept.update(model=build(name)),
        "litert": lambda: converted("litert-arm64"),
        "litert-int8": lambda: converted("litert-arm64-int8"),
        "coreml": lambda: converted("coreml-ios16"),
        "verify-litert": lambda: verified("litert-arm64.tflite"),
        "verify-int8": lambda: verified("litert-arm64-int8.tflite"),
        "verify-coreml": lambda: verified("m.mlpackage"),
        "shrink": shrunk,
        "reload": reloaded,
        "lint": linted,
    }
    for step, action in actions.items():
        if _needed(step) - {s for s, told in record["steps"].items() if told["outcome"] == "ok"}:
            record["steps"][step] = {"outcome": "not reached"}
        else:
            record["steps"][step] = {"outcome": "hang", "seconds": LIMIT_S * PATIENCE}
            _write(path, record)  # What is left where the process is ended.
            record["steps"][step] = attempt(action)
        _write(path, record)


def _needed(step: str) -> set[str]:
    """Steps without which a step cannot be."""
    before = {"verify-litert": "litert", "verify-int8": "litert-int8", "verify-coreml": "coreml",
              "reload": "shrink", "lint": "litert"}  # fmt: skip
    return set() if step == "build" else {"build", *([before[step]] if step in before else [])}


class WrongError(Exception):
    """A result that is not right."""


def attempt(action: Callable[[], None]) -> Outcome:
    """One step: ok, wrong, a message (an error that the project raises), a traceback, or a hang."""
    from converters.errors import EdgepruneError

    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT_S * PATIENCE)
    try:
        action()
        told: Outcome = {"outcome": "ok"}
    except _TooLongError:
        told = {"outcome": "hang"}
    except WrongError as error:
        told = {"outcome": "wrong", "error": str(error)}
    except EdgepruneError as error:
        told = {"outcome": "message", "error": str(error)[:600]}
    except Exception as error:
        told = {"outcome": "traceback", "error": f"{type(error).__name__}: {error}"[:600]}
    finally:
        signal.alarm(0)
    return {**told, "seconds": round(time.perf_counter() - start, 1)}


class _TooLongError(BaseException):
    pass


def _stop(number: int, frame: Any) -> None:
    raise _TooLongError


def _write(path: Path, record: Outcome) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def run(folder: Path, names: list[str]) -> None:
    """Each model in a process of its own; those that are there already are left, unless they are named."""
    folder.mkdir(parents=True, exist_ok=True)
    # Spread over families: what is there when a run is stopped says something of all of them.
    spread = [name for start in range(STRIDE) for name in list(MODELS)[start::STRIDE]]
    for name in names or spread:
        path = folder / f"{name.replace('/', '-')}.json"
        if path.exists() and not names:
            continue
        with tempfile.TemporaryDirectory() as files:
            command = [sys.executable, __file__, "--one", name, str(path), files]
            with suppress(subprocess.TimeoutExpired):  # Its record says at which step.
                subprocess.run(command, timeout=LIMIT_S * PATIENCE * len(STEPS), check=False)
        told = json.loads(path.read_text())["steps"] if path.exists() else {}
        failed = {step: entry["outcome"] for step, entry in told.items() if entry["outcome"] != "ok"}
        print(name, failed, flush=True)


def page(folder: Path) -> None:
    """Write docs/results/breadth.md and breadth.json."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    (RESULTS / "breadth.json").write_text(json.dumps(records, indent=1) + "\n")
    lines = [
        "# Models nobody here made", "",
        f"{len(records)} models of timm and torchvision, random weights, perturbed norms and biases, at most "
        "128 px, through the public interface: `python benchmarks/breadth.py FOLDER`. A step that is not "
        "reached, because the one before it failed, counts as failed; a hang is more than "
        f"{LIMIT_S * PATIENCE} s.", "",
        "| step | ok | of | share | bar |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for step in STEPS:
        ok = sum(r["steps"].get(step, {}).get("outcome") == "ok" for r in records)
        bar = f"{BARS[step]:.0%}" if step in BARS else ""
        lines.append(f"| {step} | {ok} | {len(records)} | {ok / max(len(records), 1):.0%} | {bar} |")
    lines += ["", "What was not ok:", "", "| model | step | outcome | s | error |", "|---|---|---|---|---|"]
    for record in records:
        for step, told in record["steps"].items():
            if told["outcome"] not in ("ok", "not reached"):
                error = " ".join(told.get("error", "").split()).replace("|", "/")[:200]
                cells = (record["model"], step, told["outcome"], told.get("seconds", ""), error)
                lines.append(f"| {' | '.join(map(str, cells))} |")
    (RESULTS / "breadth.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("folder")
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    if options.one:
        path, files = options.models
        measure(options.folder, Path(path), Path(files))
    elif options.page:
        page(Path(options.folder))
    else:
        run(Path(options.folder), options.models)


if __name__ == "__main__":
    main()
