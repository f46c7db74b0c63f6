"""`edgeprune verify` on files of a real run."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from edgeprune.cli import main

HERE = ("--runtime", "host", "--images", "5")


def file(run: Path, variant: str, target: str = "litert-arm64-int8") -> Path:
    return run / "files" / f"{variant}-{target}.tflite"


def facts(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("variant", ["dense", "block80", "channels"])
def test_a_file_in_a_run_agrees_with_its_model(finished_run, capsys, variant):
    assert main(["verify", str(file(finished_run, variant)), *HERE, "--json", "-"]) == 0
    told = facts(capsys)
    assert told["agrees"] is True
    assert told["reference"] == "the file's own program in float64"
    assert told["compared_with"].endswith(f"variant {variant} of the run {finished_run}, 5 held-out images")
    (check,) = told["checks"]
    assert (check["runtime"], check["images"], check["top1_agreement"]) == ("host", 5, 1.0)
    assert check["max_relative_error"] < check["tolerance"] == 1e-4


def test_the_table_says_it_in_words(finished_run, capsys, tmp_path):
    out = tmp_path / "result.json"
    assert main(["verify", str(file(finished_run, "block80")), *HERE, "--json", str(out)]) == 0
    shown = capsys.readouterr()
    assert "agrees" in shown.out
    assert "against the torch model as it is" in shown.out
    assert shown.out.endswith("the file computes what it must\n")
    assert "host: 5 images" in shown.err
    assert json.loads(out.read_text())["agrees"] is True


def test_another_variants_file_is_found_out(finished_run, capsys):
    path = str(file(finished_run, "block80"))
    assert main(["verify", path, *HERE, "--variant", "dense"]) == 1
    shown = capsys.readouterr().out
    assert "the first step where they part: features." in shown
    assert shown.endswith("MISMATCH: outputs differ from the torch model by more than the tolerance\n")


def test_a_package_in_a_run_agrees_with_its_model(finished_run, capsys):
    package = finished_run / "files" / "block80-coreml-ios16.mlpackage"
    assert main(["verify", str(package), "--images", "5", "--json", "-"]) == 0
    told = facts(capsys)
    assert told["checks"][0]["runtime"] == "evaluator"
    assert told["checks"][0]["agrees"]
    assert told["checks"][0]["max_relative_error"] > 0, "float16"


def test_a_model_and_its_weights_do_instead_of_a_run(finished_run, capsys, tmp_path):
    copied = shutil.copy(file(finished_run, "dense"), tmp_path / "mine.tflite")
    weights = finished_run / "variants" / "dense.safetensors"
    model = ["--model", "mobilenet_v3_small", "--checkpoint", str(weights)]
    assert main(["verify", str(copied), *HERE, *model, "--json", "-"]) == 0
    told = facts(capsys)
    assert told["compared_with"].endswith("random images")
    assert told["checks"][0]["max_relative_error"] < 1e-4
    assert main(["verify", str(copied), *HERE, *model, "--mean", "0", "0", "0"]) == 1
    assert main(["verify", str(copied), *HERE, "--run", str(finished_run), "--variant", "dense"]) == 0


@pytest.mark.slow
def test_errors_by_op_are_written_for_model_explorer(finished_run, capsys, tmp_path):
    command = ["verify", str(file(finished_run, "dense")), *HERE, "--node-data", str(tmp_path / "overlays")]
    assert main(command) == 0
    results = json.loads((tmp_path / "overlays" / "error.json").read_text())["main"]["results"]
    assert len(results) > 50
    errors = [node["value"] for node in results.values()]
    assert errors[0] < 0.02, "the first convolution: nothing but the rounding of its weights"
    # Errors add up on the way, as far as this short training happens to let them.
    assert 0 < statistics.median(errors) < 0.1


@pytest.mark.slow
def test_two_formats_beside_each_other(finished_run, capsys):
    tflite = file(finished_run, "block80", "litert-arm64-int8")
    package = finished_run / "files" / "block80-coreml-ios16.mlpackage"
    command = ["verify", str(package), "--against", str(tflite), *HERE]
    assert main([*command, "--json", "-"]) == 0
    told = facts(capsys)
    assert (told["agrees"], told["against"]["agrees"]) == (True, True)
    side = told["side_by_side"]
    assert side["paths"] == [str(package), str(tflite)]
    assert 0 < side["apart"] <= sum(side["errors"]) + 1e-6
    assert side["errors"][0] < side["errors"][1]  # float16 beside int8
    assert len(side["steps"]) > 40
    assert main(["verify", str(package), "--against", str(file(finished_run, "dense")), *HERE]) == 2
    assert "--against compares files of one model: variant block80" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.coreai
@pytest.mark.xdist_group("coreai")
def test_apples_two_formats_beside_each_other(capsys, tmp_path):
    """Core ML's evaluator, Core AI's runtime and torch on one model; then one file is of other weights."""
    pytest.importorskip("coreai", reason="Core AI is an extra: make test-coreai")

    def converted(folder: str, target: str, checkpoint: Path) -> str:
        chosen = ["--target", target, "--image-size-px", "32", "--output", str(tmp_path / folder)]
        assert main(["convert", str(checkpoint), "--model", NETWORK, *chosen, "--json", "-"]) == 0
        return facts(capsys)["files"][0]["path"]

    checkpoint = a_network(tmp_path / "mine.safetensors", seed=0)
    apple = converted("a", "coreai-ios27", checkpoint)
    package = converted("a", "coreml-ios16", checkpoint)
    known = ["--model", NETWORK, "--checkpoint", str(checkpoint), "--images", "4"]
    command = ["verify", package, "--against", apple, *known]
    assert main([*command, "--json", "-"]) == 0
    told = facts(capsys)
    assert (told["agrees"], told["against"]["agrees"]) == (True, True)
    assert told["checks"][0]["runtime"] == "evaluator"
    assert [check["runtime"] for check in told["against"]["checks"]] == ["core-ai", "core-ai-float16"]
    assert told["side_by_side"]["paths"] == [package, apple]
    assert told["side_by_side"]["apart"] < 5e-3
    assert told["side_by_side"]["parting"] is None
    assert len(told["side_by_side"]["steps"]) > 10
    wrong = converted("b", "coreai-ios27", a_network(tmp_path / "other.safetensors", seed=1))
    assert main(["verify", package, "--against", wrong, *known]) == 1
    shown = capsys.readouterr().out
    assert "the two files' answers are" in shown


NETWORK = "timm/test_efficientnet"


def a_network(path: Path, seed: int) -> Path:
    """Its random weights, written, batch norms measured, without which little of the image is left."""
    torch.manual_seed(seed)
    model = timm.create_model(NETWORK.removeprefix("timm/"), pretrained=False).train()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(16, 3, 32, 32))
    save_file(model.state_dict(), path)
    return path


def test_images_that_are_gone_are_made_up_for(finished_run, capsys, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    recipe = run / "recipe.toml"
    lines = [
        'data = "gone"' if line.startswith("data =") else line for line in recipe.read_text().split("\n")
    ]
    recipe.write_text("\n".join(lines))
    assert main(["verify", str(file(run, "dense")), *HERE, "--json", "-"]) == 0
    assert facts(capsys)["compared_with"].endswith("random images: its own are not at gone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no torch model, and no other runtime, to compare"),
        (("--model", "mobilenet_v3_small"), "--model and --checkpoint: give both"),
        (("--checkpoint", "w.pt", "--model", "resnet999"), "unknown model 'resnet999'"),
        (("--checkpoint", "gone.pt", "--model", "mobilenet_v3_small"), "checkpoint gone.pt: no such file"),
        (("--run", "nowhere"), "nowhere"),
        (("--images", "0"), "--images 0: must be 1 or more"),
        (("--runtime", "phone"), "unknown runtime 'phone': choose from host"),
        (("--node-data", "overlays"), "--node-data needs the torch model: name a run, or --model and"),
        (("--json", "no/such/folder.json"), "cannot write no/such/folder.json: no such folder"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "",
)
def test_mistakes_get_one_message(finished_run, capsys, tmp_path, options, message):
    alone = shutil.copy(file(finished_run, "dense"), tmp_path / "alone.tflite")
    runtime = () if "--runtime" in options else ("--runtime", "host")
    assert main(["verify", str(alone), *runtime, *options]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") or "\nerror: " in complaint
    assert message in complaint
    assert "Traceback" not in complaint


def test_a_run_needs_the_name_of_a_variant(finished_run, capsys, tmp_path):
    alone = shutil.copy(file(finished_run, "dense"), tmp_path / "alone.tflite")
    assert main(["verify", str(alone), *HERE, "--run", str(finished_run)]) == 2
    assert "choose one with --variant: dense, block80, channels" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x10\0\0\0TFL3" + bytes(range(256)) * 8])
def test_a_damaged_file_is_refused(content, capsys, tmp_path):
    path = tmp_path / "damaged.tflite"
    path.write_bytes(content)
    assert main(["verify", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert str(path) in complaint


def test_help_has_examples_and_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    shown = capsys.readouterr().out
    assert "edgeprune verify runs/mine/files/block80-litert-arm64.tflite" in shown
    assert "1 one does not" in shown
