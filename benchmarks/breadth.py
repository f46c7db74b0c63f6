"""Put many models that nobody here made through the public interface, step by step, and say what fails.

    python benchmarks/breadth.py FOLDER              go on where an earlier call stopped
    python benchmarks/breadth.py FOLDER MODEL ...    these models (again)
    python benchmarks/breadth.py --page FOLDER       docs/results/breadth.md and .json from what is there

Weights are random, the gains and shifts of norms and all biases perturbed, images at most 128 px; branches
and computed weights are merged where a model has such, then 80 % of the weights of 1x1 convolutions and
linear layers are zeroed in blocks of four inputs. A process for each model, of 16 GB at most. A step that
takes more than 60 seconds of processor time counts as a hang (other work on the machine makes none), and is
ended after 300. FOLDER gets a JSON file for each model, written after each step; a model that was not done
with is done again.

The kernels are seen by running each file for which the linter says "sparse" on x86 without AVX, emulated by
qemu-user: dense kernels give the bits of a dense file with the same zeros, sparse ones add in another order.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT_S = 60
# What is slow, and comes to an end, is told from a hang; the page counts both.
END_S = 300
# Native code does not stop when it is asked to: the system ends the process.
GRACE_S = 20
# A process that waits for something uses no processor time.
WALL_LIMIT_S = 3600
MEMORY_BYTES = 16 << 30
ZEROS = 0.8
STEPS = ("build", "merge", "prune", "litert", "litert-int8", "coreml", "verify-litert", "verify-int8",
         "verify-coreml", "lint", "kernels", "dead", "shrink", "reload")  # fmt: skip
# Steps without which a step cannot be.
AFTER = {"verify-litert": "litert", "verify-int8": "litert-int8", "verify-coreml": "coreml",
         "reload": "shrink", "lint": "litert", "kernels": "lint"}  # fmt: skip
STRIDE = 7
# Sparse kernels add in another order; float32 and many layers make no more of it.
KERNELS_OFF = 1e-3
RESULTS = Path(__file__).parent.parent / "docs" / "results"
BARS = {"build": 1.0, "litert": 0.95, "litert-int8": 0.95, "coreml": 0.95, "verify-litert": 0.95,
        "verify-int8": 0.95, "verify-coreml": 0.95, "dead": 1.0, "shrink": 0.85, "reload": 1.0}  # fmt: skip
SPARSE_BAR = 30
SIZES_PX = {
    "vit_tiny_patch16_224": 64, "deit_tiny_patch16_224": 64, "mixer_s16_224": 64, "gmlp_ti16_224": 64,
    "resmlp_12_224": 64, "xcit_nano_12_p16_224": 64, "swin_tiny_patch4_window7_224": 112, "pit_ti_224": 64,
    "cait_xxs24_224": 64, "eva02_tiny_patch14_224": 56,
    "levit_128s": 128, "efficientformerv2_s0": 128, "botnet26t_256": 128,
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
# Other widths and depths of mobile families that are in the list above: what is used on small devices.
WIDTHS = (
    "mobilenetv2_035", "mobilenetv2_050", "mobilenetv2_075", "mobilenetv3_small_050", "mobilenetv3_small_075",
    "mobilenetv3_large_075", "lcnet_035", "lcnet_075", "lcnet_100", "mobilenetv4_conv_small_035",
    "mobilenetv4_conv_small_050", "tinynet_b", "tinynet_c", "tinynet_d", "mnasnet_050", "mnasnet_075",
    "semnasnet_075", "repghostnet_058", "repghostnet_080", "ghostnet_050", "tf_mobilenetv3_small_075",
    "tf_mobilenetv3_small_minimal_100", "hardcorenas_b", "efficientnet_lite1",
)  # fmt: skip
TORCHVISION = (
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5", "squeezenet1_1",
    "mnasnet0_5", "googlenet", "resnet18", "alexnet", "lraspp_mobilenet_v3_large",
)  # fmt: skip
MODELS = {**{f"timm/{name}": SIZES_PX.get(name, 128) for name in (*TIMM, *WIDTHS)},
          **{f"torchvision/{name}": 128 for name in TORCHVISION}}  # fmt: skip

Outcome = dict[str, Any]


class WrongError(Exception):
    """A result that is not right."""


def build(name: str) -> Any:
    """The model, in eval mode, its norms and biases perturbed."""
    import timm
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(0)
    source, _, short = name.partition("/")
    if source == "timm":
        sized = {"img_size": MODELS[name]} if short in SIZES_PX else {}
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


class Subject:
    """One model on its way; each method a step of `STEPS`, what it found out in `facts`."""

    def __init__(self, name: str, folder: Path) -> None:
        import numpy as np
        import torch

        self.name, self.folder, size_px = name, folder, MODELS[name]
        self.facts: Outcome = {"size_px": size_px}
        self.example = torch.rand(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(2))
        self.pixels = np.random.default_rng(3).uniform(0, 255, (2, 3, size_px, size_px)).astype(np.float32)

    def answers(self, model: Any) -> Any:
        """What a model gives for the example, one tensor."""
        import torch

        from converters.arguments import results_of

        with torch.no_grad():
            (tensor,) = results_of(model.eval()(self.example)).values()
        return tensor

    def moved(self, wanted: Any, found: Any) -> float:
        return float((found - wanted).abs().max() / wanted.abs().max())

    def build(self) -> None:
        self.model = build(self.name)
        self.answers(self.model)
        self.facts["weights"] = sum(p.numel() for p in self.model.parameters())

    def merge(self) -> None:
        """What can be merged, merged: the repair a user asks for by `merge_branches`."""
        from edgeprune.models import branches

        self.facts["merged"] = branches.mergeable(self.model) is not None
        if self.facts["merged"]:
            wanted, self.model = self.answers(self.model), branches.merged(self.model)
            if (off := self.moved(wanted, self.answers(self.model))) > 1e-3:
                raise WrongError(f"merging moves the answers by {off:.1g}")

    def prune(self) -> None:
        from edgeprune import pruning

        self.facts["zeros"] = len(pruning.prune(self.model, pruning.Block(1, 4), ZEROS))

    def litert(self) -> None:
        self._write_litert("litert-arm64")

    def litert_int8(self) -> None:
        self._write_litert("litert-arm64-int8")

    def _write_litert(self, target: str) -> None:
        from converters.litert import conversion

        if not hasattr(self, "prepared"):
            self.prepared = conversion.prepare(self.model, self.example)
        conversion.write(self.prepared, target, self.folder / f"{target}.tflite")

    def coreml(self) -> None:
        from converters import coreml

        coreml.convert(self.model, self.example, self.folder / "m.mlpackage", target="coreml-ios16")

    def verify_litert(self) -> None:
        self._verify("litert-arm64.tflite")

    def verify_int8(self) -> None:
        self._verify("litert-arm64-int8.tflite")

    def verify_coreml(self) -> None:
        self._verify("m.mlpackage")

    def _verify(self, file: str) -> None:
        from converters import verify

        runtimes = ("host",) if file.endswith(".tflite") else None
        result = verify.verify(self.folder / file, self.pixels, self.model, runtimes=runtimes)
        self.facts.setdefault("off", {})[file] = result.model_error
        if not result.agrees:
            found = [c.reason for c in result.checks if c.agrees is False and c.reason]
            raise WrongError("; ".join([*result.problems, *found]))

    def lint(self) -> None:
        from converters import litert

        verdict = litert.lint(self.folder / "litert-arm64.tflite")
        self.facts["sparse"] = verdict.sparse
        self.facts["problems"] = [str(problem) for problem in verdict.problems[:3]]

    def kernels(self) -> None:
        """Whether the runtime does what the linter says, where it says "sparse"."""
        if not self.facts["sparse"]:
            return
        sparse, dense = self._on_sparse_kernels()
        if sparse.outputs is None:
            raise WrongError(f"the linter says sparse, the runtime refuses the file: {sparse.refused}")
        off = float(abs(sparse.outputs - dense.outputs).max() / abs(dense.outputs).max())
        if off == 0:
            raise WrongError("the linter says sparse, the runtime gives a dense file's bits")
        if off > KERNELS_OFF:
            raise WrongError(f"on sparse kernels the answers are off by {off:.1g}")

    def _on_sparse_kernels(self) -> tuple[Any, Any]:
        """What the runtime gives for the file, and for a dense one with the same zeros."""
        from converters.litert import mirror, repair, storage
        from converters.litert.graph import read
        from converters.runtimes.environments import runtime
        from converters.runtimes.running import FileRun, run_files

        dense = read(self.prepared.lowered)
        repair.repair(dense)
        mirror.even_padding(dense)  # As in the sparse file.
        storage.drop_unused(dense)
        file = self.folder / "dense.tflite"
        file.write_bytes(dense.to_bytes())
        image = self.pixels[:1].transpose(0, 2, 3, 1) / 255
        files = [FileRun(path, image) for path in (self.folder / "litert-arm64.tflite", file)]
        sparse, dense_too = run_files(files, runtime("x86-sparse")).answers
        return sparse, dense_too

    def dead(self) -> None:
        """Channels that are zeroed where they are made, then removed: the answers must not move."""
        import channels_breadth

        self.prepared = self.model = None  # Of large models a second copy is too much.
        model = build(self.name).double()
        example, self.example = self.example, self.example.double()
        try:
            cuts, left = channels_breadth.kill(model, self.example, 30.0)
            wanted = self.answers(model).clone()
            channels_breadth.take_out_at_rest(model, self.example, cuts)
            self.facts |= {"dead_groups": len(cuts), "dead_left": len(left)}
            self.facts["dead_moved"] = off = self.moved(wanted, self.answers(model))
        finally:
            self.example = example
        if off > 1e-6:
            raise WrongError(f"removing dead channels moves the answers by {off:.1g}")

    def shrink(self) -> None:
        from edgeprune import pruning

        self.shrunk = build(self.name)
        pruning.shrink(self.shrunk, self.example, 0.25)
        self.answers(self.shrunk)
        self.facts["shrunk_to"] = sum(p.numel() for p in self.shrunk.parameters()) / self.facts["weights"]

    def reload(self) -> None:
        from edgeprune.models import resize

        fresh, state = build(self.name), self.shrunk.state_dict()
        resize.resize(fresh, state)
        fresh.load_state_dict(state)
        if self.moved(self.answers(self.shrunk), self.answers(fresh)) > 1e-5:
            raise WrongError("the reloaded model gives other answers")


def measure(name: str, path: Path, folder: Path) -> None:
    """All steps of one model, its record written after each."""
    subject = Subject(name, folder)
    steps: dict[str, Outcome] = {}
    for step in STEPS:
        fine = {done for done, told in steps.items() if told["outcome"] == "ok"}
        if {"build", AFTER.get(step, "build")} - fine and step != "build":
            steps[step] = {"outcome": "not reached"}
        else:
            steps[step] = {"outcome": "hang", "seconds": END_S}
            _write(path, {"model": name, "steps": steps})  # What is left where the process is ended.
            steps[step] = attempt(getattr(subject, step.replace("-", "_")))
        _write(path, {"model": name, **subject.facts, "steps": steps, "done": step == STEPS[-1]})


def attempt(action: Callable[[], None]) -> Outcome:
    """One step: ok, wrong, a message (an error that the project raises), a traceback, or a hang."""
    from converters.errors import EdgepruneError

    gc.collect()
    start = processor_seconds()
    own = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(own) + END_S + GRACE_S, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, END_S)
    told: Outcome
    try:
        action()
        told = {"outcome": "ok"}
    except _TooLongError:
        told = {"outcome": "hang"}
    except WrongError as error:
        told = {"outcome": "wrong", "error": str(error)}
    except EdgepruneError as error:
        told = {"outcome": "message", "error": str(error)[:600]}
    except Exception as error:
        told = {"outcome": "traceback", "error": f"{type(error).__name__}: {error}"[:600]}
        told["trace"] = traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {**told, "seconds": round(processor_seconds() - start, 1)}


class _TooLongError(BaseException):
    pass


def _stop(number: int, frame: Any) -> None:
    raise _TooLongError


def processor_seconds() -> float:
    """Of this process and those of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _write(path: Path, record: Outcome) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def run(folder: Path, names: Sequence[str]) -> None:
    """Each model in a process of its own; those that are done are left, unless they are named."""
    folder.mkdir(parents=True, exist_ok=True)
    load_packages()
    # Spread over families: what is there when a run is stopped says something of all of them.
    spread = [name for start in range(STRIDE) for name in list(MODELS)[start::STRIDE]]
    for name in names or spread:
        path = folder / f"{name.replace('/', '-')}.json"
        if names or not (path.exists() and json.loads(path.read_text()).get("done")):
            path.unlink(missing_ok=True)
            with tempfile.TemporaryDirectory() as files:
                _in_child(name, path, Path(files))
            _say(name, path)


def load_packages() -> None:
    """What every model needs: read once, not in each process (a quarter of the whole time)."""
    import coremltools
    import litert_torch
    import networkx
    import timm
    import torch
    import torch._dynamo
    import torchvision

    from converters import coreml, litert, verify
    from converters.coreml import framework
    from edgeprune import pruning

    torch.set_num_threads(1)
    gc.freeze()  # What is there now stays: each child would look through it again and again.
    _ = (coremltools, litert_torch, networkx, timm, torchvision, coreml, litert, verify, framework, pruning)


def _in_child(name: str, path: Path, files: Path) -> None:
    """Measure a model in a child; its record says "done" unless the child was ended."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = 1
        gc.disable()  # A quarter of a conversion's time, and it frees next to nothing before the step's end.
        try:
            measure(name, path, files)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            _end_helpers()
            os._exit(status)
    status = _waited(child)
    record = json.loads(path.read_text()) if path.exists() else {"model": name, "steps": {}}
    if not record.get("done"):
        at = next((s for s, told in record["steps"].items() if told["outcome"] == "hang"), None)
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if at and ended not in (None, signal.SIGXCPU, signal.SIGKILL):
            crash = f"the process ended by signal {ended}"
            record["steps"][at] = {"outcome": "crash", "error": crash}
        _write(path, {**record, "done": True})


def _end_helpers() -> None:
    from converters.litert import apart

    apart._CHILD.stop()


def _waited(child: int) -> int:
    """The status a child ended with; it is ended where it waits for something that does not come."""
    try:
        for _ in range(WALL_LIMIT_S * 10):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    except BaseException:  # A run that is stopped leaves no child behind.
        os.kill(child, signal.SIGKILL)
        raise


def _say(name: str, path: Path) -> None:
    record = json.loads(path.read_text())
    failed = {s: told["outcome"] for s, told in record["steps"].items() if told["outcome"] != "ok"}
    seconds = sum(told.get("seconds", 0) for told in record["steps"].values())
    sparse = "sparse" if record.get("sparse") else "dense"
    print(f"{name}: {seconds:.0f} s, {sparse}", failed or "", flush=True)


def page(folder: Path) -> None:
    """Write docs/results/breadth.md and breadth.json."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    records = [record for record in records if record.get("done")]
    (RESULTS / "breadth.json").write_text(json.dumps(records, indent=1) + "\n")
    (RESULTS / "breadth.md").write_text("\n".join(lines_of(records)) + "\n")


def lines_of(records: Sequence[Outcome]) -> list[str]:
    """The page."""
    outcomes = [told["outcome"] for record in records for told in record["steps"].values()]
    sparse = [r for r in records if r.get("sparse")]
    seen = [r for r in sparse if r["steps"]["kernels"]["outcome"] == "ok"]
    minutes = sum(t.get("seconds", 0) for r in records for t in r["steps"].values()) / 60
    told = {kind: outcomes.count(kind) for kind in ("wrong", "traceback", "crash", "hang")}
    slow = [
        f"{r['model']} {step} {t['seconds']:.0f} s"
        for r in records
        for step, t in r["steps"].items()
        if t["outcome"] != "hang" and t.get("seconds", 0) > LIMIT_S
    ]
    bars = [_bar(step, records) for step in STEPS]
    widths = [r for r in records if r["model"].removeprefix("timm/") in WIDTHS]
    of_widths = sum(r in widths for r in seen)
    lines = [
        "# Models nobody here made", "",
        f"{len(records)} models of timm and torchvision through the public interface: random weights, "
        "perturbed norms and biases, at most 128 px; branches and computed weights merged where there are "
        f"any, then {ZEROS:.0%} of the weights of 1x1 convolutions and linear layers zero in blocks of four "
        f"inputs (`benchmarks/breadth.py`, {minutes:.0f} minutes of one processor).", "",
        f"- Steps that gave something wrong: {told['wrong']}; tracebacks: {told['traceback']}; crashes: "
        f"{told['crash']}; steps that did not end: {told['hang']}. Bar: none of them.",
        f"- Steps that ended, after more than {LIMIT_S} s of processor time: {len(slow)}. "
        f"Bar: none. {', '.join(slow)}",
        f"- Every refusal is a message: {outcomes.count('message')}.",
        f"- Models that the linter calls eligible for the sparse kernels, after repairs: {len(sparse)}, of "
        f"which the runtime confirms {len(seen)}. Bar: {SPARSE_BAR}, all confirmed: "
        f"{_met(len(seen) == len(sparse) >= SPARSE_BAR)}. Confirmed: it runs there, adds in "
        f"another order than a dense file with the same zeros, and gives its answers up to {KERNELS_OFF:g}.",
        f"- {len(widths)} of the {len(records)} models are other widths or depths of mobile families that "
        f"the list has besides (narrow ones are for small devices); of the confirmed ones {of_widths}.", "",
        "A step that is not reached, because the one before it failed, counts as failed, but for reload, of "
        "which the share is of the models that were shrunk.", "",
        "| step | ok | of | share | reached | bar | |", "|---|--:|--:|--:|--:|--:|---|", *bars, "",
        f"Of the {_reached('reload', records)} models that were shrunk, {_ok('reload', records)} reload; why "
        "the others were not is below.", "",
    ]  # fmt: skip
    lines += ["What was not ok:", "", "| model | step | outcome | s | error |", "|---|---|---|--:|---|"]
    for record in records:
        for step, entry in record["steps"].items():
            if entry["outcome"] not in ("ok", "not reached"):
                cells = (record["model"], step, entry["outcome"], entry.get("seconds", ""), _short(entry))
                lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Every model:", "",
              "| model | px | weights | merged | kernels | the linter's first reason | int8 off "
              "| Core ML off | shrunk to | s |", "|---|--:|--:|---|---|---|--:|--:|--:|--:|"]  # fmt: skip
    return [*lines, *map(_row, records)]


def _bar(step: str, records: Sequence[Outcome]) -> str:
    ok = _ok(step, records)
    # A model that may not shrink, which has a bar of its own, has nothing to reload.
    share = ok / max(_reached(step, records) if step == "reload" else len(records), 1)
    bar = BARS.get(step)
    met = "" if bar is None else _met(share >= bar)
    told = (
        step,
        ok,
        len(records),
        f"{share:.1%}",
        _reached(step, records),
        "" if bar is None else f"{bar:.0%}",
    )
    return f"| {' | '.join(map(str, told))} | {met} |"


def _ok(step: str, records: Sequence[Outcome]) -> int:
    return sum(r["steps"].get(step, {}).get("outcome") == "ok" for r in records)


def _reached(step: str, records: Sequence[Outcome]) -> int:
    return sum(r["steps"].get(step, {}).get("outcome") not in (None, "not reached") for r in records)


def _met(fine: bool) -> str:
    return "met" if fine else "**not met**"


def _short(entry: Outcome) -> str:
    return " ".join(entry.get("error", "").split()).replace("|", "/")[:200]


def _row(record: Outcome) -> str:
    off = record.get("off", {})
    seconds = sum(told.get("seconds", 0) for told in record["steps"].values())
    reason = "" if record.get("sparse") else (record.get("problems") or [""])[0].replace("|", "/")[:120]
    cells = (
        record["model"], record.get("size_px", ""), f"{record.get('weights', 0):,}",
        "yes" if record.get("merged") else "", "sparse" if record.get("sparse") else "dense", reason,
        _number(off.get("litert-arm64-int8.tflite"), ".3f"), _number(off.get("m.mlpackage"), ".4f"),
        _number(record.get("shrunk_to"), ".0%"), f"{seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"not in the list: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if options.page:
        page(options.folder)
    else:
        run(options.folder, options.models)


if __name__ == "__main__":
    main()
