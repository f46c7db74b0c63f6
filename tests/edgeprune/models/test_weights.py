"""Weights in every form that people keep them in, made here; what is none is named for what it is."""

import argparse
import contextlib
import copy
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from edgeprune.errors import UserError
from edgeprune.models import build, checkpoint_file, matching, pretrained, weights
from edgeprune.pipeline import starting_point
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import Augment

NAME = "mobilenet_v3_small"
CLASSES = 3


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    model = build.build(NAME, CLASSES).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return model


@pytest.fixture
def blank():
    torch.manual_seed(2)
    return build.build(NAME, CLASSES).eval()


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def halved(state):
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def plain(model, path):
    torch.save(model.state_dict(), path)


def old_format(model, path):
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


def safetensors(model, path):
    save_file(model.state_dict(), path)


def lightning(model, path):
    state = prefixed(model.state_dict(), "model.") | {"criterion.weight": torch.ones(3)}
    torch.save(
        {"epoch": 3, "state_dict": state, "hyper_parameters": argparse.Namespace(lr=0.1), "callbacks": {}},
        path,
    )


def lightning_net(model, path):
    torch.save({"state_dict": prefixed(model.state_dict(), "net.")}, path)


def compiled_then_parallel(model, path):
    torch.save({"model": prefixed(model.state_dict(), "module._orig_mod.")}, path)


def parallel_then_compiled(model, path):
    torch.save({"net": prefixed(model.state_dict(), "_orig_mod.module.")}, path)


def timm_with_average(model, path):
    other = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    args = argparse.Namespace(lr=np.float64(0.1))
    torch.save(
        {
            "state_dict": other,
            "state_dict_ema": prefixed(model.state_dict(), "module."),
            "args": args,
            "metric": np.float32(0.7),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        },
        path,
    )


def averaged(model, path):
    average = torch.optim.swa_utils.AveragedModel(model)
    torch.save({"model_state_dict": average.state_dict()}, path)


def profiled(model, path):
    state = dict(model.state_dict()) | {
        "total_ops": torch.zeros(1),
        "features.0.total_params": torch.zeros(1),
    }
    torch.save({"model_state_dict": state}, path)


def half_precision(model, path):
    torch.save(halved(model.state_dict()), path)


def weight_normed(model, path):
    copied = copy.deepcopy(model)
    nn.utils.parametrizations.weight_norm(copied.classifier[0])
    nn.utils.parametrizations.weight_norm(copied.features[0][0])
    torch.save(copied.state_dict(), path)


def old_weight_normed(model, path):
    copied = copy.deepcopy(model)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(copied.classifier[0])
    torch.save(copied.state_dict(), path)


def quantisation_aware(model, path):
    state = dict(model.state_dict())
    state["features.0.0.weight_fake_quant.scale"] = torch.ones(1)
    state["features.0.0.activation_post_process.min_val"] = torch.ones(1)
    torch.save(state, path)


def other_names(model, path):
    state = {
        key: value for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    renamed = {
        f"part{place}.{key.rpartition('.')[2]}": value for place, (key, value) in enumerate(state.items())
    }
    torch.save(renamed, path)


FORMS = [
    plain, old_format, safetensors, lightning, lightning_net, compiled_then_parallel, parallel_then_compiled,
    timm_with_average, averaged, profiled, half_precision, weight_normed, old_weight_normed,
    quantisation_aware, other_names,
]  # fmt: skip


@pytest.mark.parametrize("save", FORMS, ids=lambda f: f.__name__)
def test_every_form_gives_the_model_back(save, trained, blank, tmp_path):
    path = tmp_path / ("w.safetensors" if save is safetensors else "w.ckpt")
    save(trained, path)
    weights.load_checkpoint(blank, path)
    within = 2e-3 if save is half_precision else 1e-6
    for key, value in trained.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(blank.state_dict()[key], value, rtol=within, atol=within)


@pytest.mark.parametrize("save", FORMS, ids=lambda f: f.__name__)
def test_a_model_is_built_from_every_form(save, trained, tmp_path):
    path = tmp_path / ("w.safetensors" if save is safetensors else "w.ckpt")
    save(trained, path)
    built = weights.from_checkpoint(NAME, path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(built(images), trained(images), rtol=2e-2, atol=2e-2)


def test_what_was_taken_and_left_out_is_said(trained, blank, tmp_path):
    timm_with_average(trained, tmp_path / "w.pth")
    told = "\n".join(weights.load_checkpoint(blank, tmp_path / "w.pth").notes)
    assert "from state_dict_ema, without the prefix 'module.'" in told
    lightning(trained, tmp_path / "l.ckpt")
    told = "\n".join(weights.load_checkpoint(blank, tmp_path / "l.ckpt").notes)
    assert "1 that are not the model's (criterion.weight)" in told
    half_precision(trained, tmp_path / "h.pt")
    assert "tensors were float16" in "\n".join(weights.load_checkpoint(blank, tmp_path / "h.pt").notes)


def test_other_names_come_with_a_table(trained, blank, tmp_path):
    other_names(trained, tmp_path / "w.pt")
    loaded = weights.load_checkpoint(blank, tmp_path / "w.pt")
    assert loaded.renamed[0] == ("part0.weight", "features.0.0.weight", (16, 3, 3, 3))
    assert any(line.split()[:2] == ["part0.weight", "features.0.0.weight"] for line in loaded.notes)


def test_the_order_is_not_believed_where_a_tensor_is_of_another_kind():
    wanted = {"bn.weight": torch.zeros(4), "bn.bias": torch.zeros(4)}
    swapped = {"x.bias": torch.ones(4), "x.weight": torch.ones(4)}
    assert matching.in_order(swapped, wanted) == ()
    assert len(matching.in_order(dict(reversed(swapped.items())), wanted)) == 2


def load(model, recipe):
    return weights.load_weights(model, recipe.architecture, recipe.weights, recipe.head)


def started(path, **settings):
    recipe, _ = starting_point.resolved(Recipe(NAME, weights=str(path), **settings))
    torch.manual_seed(2)
    model = recipe.architecture.build(5)
    return model, recipe


@pytest.mark.parametrize("save", [plain, other_names], ids=lambda f: f.__name__)
def test_a_head_of_another_width_is_replaced_and_said_so(save, trained, tmp_path):
    save(trained, tmp_path / "w.pt")
    model, recipe = started(tmp_path / "w.pt")
    before = model.state_dict()["classifier.3.weight"].clone()
    loaded = load(model, recipe)
    assert loaded.new_head == ("classifier.3.weight", "classifier.3.bias")
    assert "a new head for 5 classes" in loaded.notes[-1]
    assert "theirs has 3" in loaded.notes[-1]
    head = model.state_dict()["classifier.3.weight"]
    assert not torch.equal(head, before), (
        "a new head begins small, whatever the architecture begins its own with"
    )
    assert float(head.std()) == pytest.approx(0.01, rel=0.1)
    assert torch.equal(model.features[0][0].weight, trained.features[0][0].weight)


def test_a_head_to_be_kept_is_not_replaced(trained, tmp_path):
    plain(trained, tmp_path / "w.pt")
    model, recipe = started(tmp_path / "w.pt", head="keep")
    with pytest.raises(UserError, match="their head has 3 classes, the images have 5"):
        load(model, recipe)
    same = recipe.architecture.build(CLASSES)
    assert load(same, recipe).new_head == ()
    assert torch.equal(same.classifier[3].weight, trained.classifier[3].weight)
    assert len(load(same, replace(recipe, head="new")).new_head) == 2


def test_weights_of_another_architecture_are_refused_with_the_share_that_matched(tmp_path):
    torch.save(build.build("mobilenet_v2", 3).state_dict(), tmp_path / "w.pt")
    model, recipe = started(tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"not of mobilenet_v3_small: \d+ of 210 tensors \(\d+ %\)"):
        load(model, recipe)


def lfs_pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def html_page(path):
    path.write_text("\n<!DOCTYPE html><html>")


def empty(path):
    path.write_bytes(b"")


def pickled_module(path):
    torch.save(nn.Linear(2, 2), path)


def pickled_module_in_a_dict(path):
    torch.save({"model": nn.Linear(2, 2), "epoch": 3}, path)


def torchscript(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def exported_program(path):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def folder(path):
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"x")


def zip_of_something(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")


def no_weights(path):
    torch.save({"epoch": 3}, path)


def truncated(path):
    torch.save({"weight": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:1500])


def damaged_table_of_contents(path):
    torch.save({"weight": torch.ones(1000)}, path)
    content = path.read_bytes()
    place = content.index(b"PK\x01\x02")
    path.write_bytes(content[:place] + b"X" + content[place + 1 :])


WRONG = {
    lfs_pointer: "Git LFS pointer",
    html_page: "HTML page",
    empty: "it is empty",
    pickled_module: r"whole pickled module \(torch.nn.modules.linear.Linear\)",
    pickled_module_in_a_dict: "whole pickled module",
    torchscript: "TorchScript; save its weights",
    exported_program: "exported program",
    folder: "it is a folder; name a file in it: model.safetensors",
    zip_of_something: "zip archive",
    no_weights: "holds no state dict",
    truncated: "its end is missing",
    damaged_table_of_contents: "its table of contents is damaged",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda f: f.__name__)
def test_a_file_that_is_none_is_named_for_what_it_is(make, tmp_path):
    path = tmp_path / "w.pt"
    make(path)
    with pytest.raises(UserError, match=WRONG[make]) as caught:
        checkpoint_file.state_dicts(path)
    assert len(caught.value.problems) == 1


class Harmful:
    def __reduce__(self):
        import os

        return os.system, ("touch ran",)


class Own:
    pass


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": torch.ones(2)}, "config": Own()}, tmp_path / "own.pt")
    assert list(checkpoint_file.state_dicts(tmp_path / "own.pt")) == ["state_dict"]
    torch.save({"state_dict": {"weight": torch.ones(2)}, "more": Harmful()}, tmp_path / "harmful.pt")
    with contextlib.suppress(UserError):
        checkpoint_file.state_dicts(tmp_path / "harmful.pt")
    assert not (tmp_path / "ran").exists()


def test_preprocessing_is_the_weights_own_and_every_field_can_be_set():
    recipe, told = starting_point.resolved(Recipe("mobilenet_v2", weights="IMAGENET1K_V1"))
    prepare = recipe.preprocessing
    assert (prepare.image_size_px, prepare.resize_px, prepare.interpolation) == (224, 256, "bilinear")
    assert "MobileNet_V2_Weights.IMAGENET1K_V1" in told[0]
    recipe, _ = starting_point.resolved(Recipe("mobilenet_v2", weights="default"))
    assert recipe.resize_px == 232
    recipe, _ = starting_point.resolved(Recipe("mobilenet_v2", weights="gone/mobilenet_v2-b0353104.pth"))
    assert recipe.resize_px == 256
    recipe, told = starting_point.resolved(
        Recipe("timm/tf_efficientnet_lite0", weights="default", image_size_px=160, interpolation="bilinear")
    )
    assert (recipe.resize_px, recipe.mean, recipe.interpolation) == (182, (0.5, 0.5, 0.5), "bilinear")
    assert "but for image_size_px, interpolation" in told[0]
    assert starting_point.resolved(recipe)[0] == recipe


def test_zeros_of_pretrained_weights_are_shared_out_unless_the_recipe_says_how():
    variants = {
        "block80": Variant(sparsity=0.8),
        "set": Variant(sparsity=0.8, allocation="uniform"),
        "named": Variant(layers={"classifier.*": 0.5}),
        "beyond": Variant(sparsity=0.97),
        "channels": Variant(macs_left=0.5),
    }
    recipe, told = starting_point.resolved(Recipe("mobilenet_v2", weights="default", variants=variants))
    found = {name: variant.allocation for name, variant in recipe.variants.items()}
    assert found == {**dict.fromkeys(variants, "uniform"), "block80": "erdos-renyi"}
    assert told[-1] == "zeros of block80 are shared out by erdos-renyi; allocation chooses another"
    recipe, told = starting_point.resolved(Recipe("mobilenet_v2", variants=variants))
    assert {variant.allocation for variant in recipe.variants.values()} == {"uniform"}


def test_without_weights_it_is_the_default():
    recipe, told = starting_point.resolved(Recipe("mobilenet_v2"))
    assert (recipe.image_size_px, recipe.resize_px, recipe.interpolation, told) == (64, None, "bilinear", [])


def test_pretrained_weights_are_trained_on_random_crops_unless_labels_lie_in_the_images():
    weights = "IMAGENET1K_V1"
    recipe, told = starting_point.resolved(Recipe("mobilenet_v2", weights=weights))
    assert recipe.augment.preset == "standard"
    assert "augmentation is standard" in told[1]
    for other in (
        Recipe("mobilenet_v2"),
        Recipe("lraspp_mobilenet_v3_large", task="segmentation", weights="default"),
    ):
        assert starting_point.resolved(other)[0].augment.preset == "light"
    recipe, told = starting_point.resolved(Recipe("mobilenet_v2", weights=weights, augment=Augment("none")))
    assert (recipe.augment.preset, len(told)) == ("none", 1)


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm/mobilenetv3_small_100"])
def test_a_name_that_the_hub_has_not_is_refused(name):
    with pytest.raises(UserError, match=r"no such file, and of .* the hub has"):
        starting_point.resolved(Recipe(name, weights="imagenet22k"))


def test_without_a_network_it_says_which_file_goes_where(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match=r"mobilenet_v2-7ebf99e0.pth cannot be fetched .*hub/checkpoints"):
        pretrained.fetch("mobilenet_v2", "default", 224)


def test_published_weights_come_from_the_hub_s_own_cache(tmp_path, monkeypatch):
    from torchvision.models import MobileNet_V3_Small_Weights

    published = build.build(NAME, 1000)
    file = tmp_path / "hub" / "checkpoints" / MobileNet_V3_Small_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    plain(published, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model, recipe = started("default")
    assert load(model, recipe).new_head
    assert torch.equal(model.features[0][0].weight, published.features[0][0].weight)


def test_a_model_with_auxiliary_heads_is_built_without_and_takes_weights_that_have_them(tmp_path):
    torch.manual_seed(0)
    published = torchvision.models.googlenet(num_classes=4, aux_logits=True, init_weights=False)
    torch.save(published.state_dict(), tmp_path / "published.pt")
    model = weights.from_checkpoint("googlenet", tmp_path / "published.pt")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), published.eval()(images))
    assert model.train()(images).shape == (2, 4)  # One tensor, as the loss takes it.


def test_padding_is_tensorflow_s_where_it_is_asked_for():
    padded = build.build("timm/mobilenetv2_100", 2, padding="same")
    assert type(padded.conv_stem).__name__ == "Conv2dSame"
    with pytest.raises(UserError, match="has no choice of padding"):
        build.build("timm/vit_tiny_patch16_224", 2, padding="same")
