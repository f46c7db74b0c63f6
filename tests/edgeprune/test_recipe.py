from dataclasses import replace
from pathlib import Path

import pytest

from edgeprune import pruning
from edgeprune import recipe as recipes
from edgeprune.budget import Budget, Limits
from edgeprune.errors import UserError
from edgeprune.pruning.sparsifier import IN_TRAINING
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import Augment, TrainConfig

FULL = Recipe(
    model="mobilenet_v3_small",
    data=Path("images"),
    augment=Augment(shift_px=2, flip=True),
    variants={
        "block": Variant(sparsity=0.8, layers={"classifier.*": 0.5}),
        "channels": Variant(channels=0.3),
    },
    targets=("litert-arm64",),
    budget=Budget(bytes={"litert-arm64": 1000}, drop_points={"top1": 0.5}),
)


def test_a_saved_recipe_reads_back_the_same(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(recipes.to_toml(FULL))
    assert recipes.read(path) == FULL


OLDER = """
model = "mobilenet_v3_small"
data = "images"
targets = ["litert-arm64"]

[augment]
shift_px = 2
flip = true

[variants.block]
sparsity = 0.8

[variants.block.layers]
"classifier.*" = 0.5

[variants.channels]
channels = 0.3

[budget]
top1_drop_points = 0.5

[budget.bytes]
litert-arm64 = 1000
"""


def test_a_recipe_saved_by_an_earlier_version_reads(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(OLDER)
    assert recipes.read(path) == FULL
    path.write_text(f"{OLDER}[budget.target.litert-web]\nbytes = 5\ntop1_drop_points = 1.5\n")
    limits = recipes.read(path).budget.target["litert-web"]
    assert limits == Limits(bytes=5, drop_points={"top1": 1.5})


def test_what_is_saved_calls_points_lost_what_earlier_versions_do():
    saved = recipes.to_data(FULL)["budget"]
    assert saved["top1_drop_points"] == 0.5
    assert "drop_points" not in saved


def test_variants_whose_names_begin_alike_are_different_ones():
    """No name is made of another's: "block" at 80 % zeros is not "block80"."""
    both = replace(FULL, variants={"block": Variant(sparsity=0.8), "block80": Variant(sparsity=0.5)})
    assert recipes.from_data(recipes.to_data(both)) == both
    assert [variant.sparsity for variant in both.variants.values()] == [0.8, 0.5]
    assert set(both.fits) == {"dense", "variants.block.fit", "variants.block80.fit"}


@pytest.mark.parametrize(
    ("given", "most"),
    [
        (["--budget.top1-drop-points", "0.25"], {"top1": 0.25}),
        (["--budget.top1-drop-points=0.25"], {"top1": 0.25}),
        (["--budget.top1_drop_points", "0.25"], {"top1": 0.25}),
        (["--budget.drop-points", "top1=0.25"], {"top1": 0.25}),
        (["--seed", "0"], {"top1": 0.5}),
    ],
)
def test_points_lost_are_limited_on_the_command_line(given, most):
    assert recipes.from_command_line(FULL, "", given).budget.drop_points == most


def test_points_of_another_task_are_refused_on_the_command_line():
    with pytest.raises(UserError, match=r"budget\.miou_drop_points: a classification is measured by top1"):
        recipes.from_command_line(FULL, "", ["--budget.miou-drop-points", "1"])


def test_the_command_line_changes_any_field():
    changed = recipes.from_command_line(
        FULL,
        "",
        [
            *("--data", "other", "--seed", "7", "--dense.epochs", "3", "--augment.flip", "None"),
            *("--variants.block.sparsity", "0.9", "--variants.block.block", "4", "1"),
            *("--variants.block.layers", "features.*=0.7", "classifier.3=0"),
            *("--targets", "coreml-ios16", "--budget.bytes", "coreml-ios16=5"),
        ],
    )
    block = changed.variants["block"]
    assert (changed.data, changed.seed, changed.dense.epochs, changed.augment.flip) == (
        Path("other"),
        7,
        3,
        None,
    )
    assert (block.sparsity, block.block) == (0.9, (4, 1))
    assert block.layers == {"features.*": 0.7, "classifier.3": 0}
    assert (changed.targets, changed.budget.bytes) == (("coreml-ios16",), {"coreml-ios16": 5})


SENSELESS = {
    "variants.block.sparsity 1.7: not in [0, 1); 0.8 means 80 % zeros": {
        "variants": {"block": Variant(sparsity=1.7)}
    },
    "variants.c.channels -1: not in [0, 1)": {"variants": {"c": Variant(channels=-1)}},
    "variants.x.channels, macs_left, parameters_left and sparsity are all 0": {"variants": {"x": Variant()}},
    "variants.x.macs_left 1: not in [0, 1); 0.5 leaves half of them": {
        "variants": {"x": Variant(macs_left=1)}
    },
    "variants.x.channels, macs_left and parameters_left: choose one of them": {
        "variants": {"x": Variant(channels=0.5, parameters_left=0.5)}
    },
    "variants.x.after 'y': name a variant before it that has channels removed and no zeros: w": {
        "variants": {
            "w": Variant(channels=0.5),
            "b": Variant(sparsity=0.5),
            "x": Variant(channels=0.5, after="y"),
            "y": Variant(channels=0.5),
        }
    },
    "variants.x.after 'b': name a variant before it that has channels removed and no zeros: there is none": {
        "variants": {"b": Variant(sparsity=0.5), "x": Variant(channels=0.5, after="b")}
    },
    "dense.first_px 16: 0, or 32 or more": {"dense": TrainConfig(first_px=16)},
    "variants.x.fit.first_px 96: at most image_size_px, 64": {
        "variants": {"x": Variant(channels=0.5, fit=TrainConfig(first_px=96))}
    },
    "variants.b.layers 'a.*': sparsity 2 is not in [0, 1)": {
        "variants": {"b": Variant(0.1, layers={"a.*": 2})}
    },
    "variants.b.block (0, 4): two sides": {"variants": {"b": Variant(sparsity=0.5, block=(0, 4))}},
    "variants.b.ramp 0: above 0 to 1": {"variants": {"b": Variant(sparsity=0.5, ramp=0)}},
    "variants.b.distill 2: 0 to 1": {"variants": {"b": Variant(sparsity=0.5, distill=2)}},
    "variants.b.criterion 'wanda': choose from magnitude": {
        "variants": {"b": Variant(sparsity=0.5, criterion="wanda")}
    },
    "variants.b.schedule 'linear': choose from cubic": {
        "variants": {"b": Variant(sparsity=0.5, schedule="linear")}
    },
    "dense.accumulate 0: 1 or more": {"dense": TrainConfig(accumulate=0)},
    "dense.ema 1: 0 to below 1": {"dense": TrainConfig(ema=1)},
    "variants.'a/b': letters, digits": {"variants": {"a/b": Variant(sparsity=0.5)}},
    "variants.dense: that name is the baseline's": {"variants": {"dense": Variant(sparsity=0.5)}},
    "unknown target 'ios': choose from coreml-ios16": {"targets": ("ios",)},
    "targets: name at least one": {"targets": ()},
    "targets: one is named twice": {"targets": ("litert-web", "litert-web")},
    "dense.epochs 0: 1 or more": {"dense": TrainConfig(epochs=0)},
    "dense.learning_rate nan": {"dense": TrainConfig(learning_rate=float("nan"))},
    "dense.batch_size 1: 2 or more": {"dense": TrainConfig(batch_size=1)},
    "augment.shift_px 40: 0 to below half": {"augment": Augment(shift_px=40)},
    "augment.erase_px 64: 0 to below the image": {"augment": Augment(erase_px=64)},
    "image_size_px 8: 32 or more": {"image_size_px": 8},
    "std (0.0, 1.0, 1.0): each above 0": {"std": (0.0, 1.0, 1.0)},
    "budget.bytes.litert-web is -1": {"budget": Budget(bytes={"litert-web": -1})},
}


@pytest.mark.parametrize("message", SENSELESS)
def test_what_makes_no_sense_is_refused(message):
    with pytest.raises(UserError) as caught:
        Recipe(model="m", **SENSELESS[message])
    assert message in str(caught.value)


def test_the_criteria_of_a_recipe_are_those_a_training_can_follow():
    fitting = {
        name
        for name, criterion in pruning.CRITERIA.items()
        if criterion.needs in IN_TRAINING and not criterion.whole_channels
    }
    assert set(recipes.CRITERIA) == fitting - {"lamp"}  # Within one layer LAMP ranks as magnitude does.


def test_all_mistakes_come_in_one_message():
    with pytest.raises(UserError) as caught:
        Recipe(
            model="m",
            dense=TrainConfig(epochs=0, batch_size=0),
            targets=("ios",),
            variants={"block": Variant(sparsity=1.7, ramp=2)},
        )
    assert len(caught.value.problems) == 5


TOML = {
    "unknown field 'sparsty'": 'model = "m"\n[variants.block]\nsparsty = 0.8',
    "unknown field 'modle'": 'modle = "m"',
    "recipe lacks 'model'": "seed = 1",
    "recipe.seed must be a whole number, not 'one'": 'model = "m"\nseed = "one"',
    "recipe.dense.epochs must be a whole number, not 1.5": 'model = "m"\n[dense]\nepochs = 1.5',
    "recipe.variants.block.sparsity must be a finite number, not True": (
        'model = "m"\n[variants.block]\nsparsity = true'
    ),
    "recipe.budget.top1_drop_points must be a finite number, not 'half'": (
        'model = "m"\n[budget]\ntop1_drop_points = "half"'
    ),
    "budget.drop_points: unknown metric 'top5': choose from top1, miou": (
        'model = "m"\n[budget.drop_points]\ntop5 = 1'
    ),
    "not TOML": "model = ",
    "not TOML: maximum recursion depth": "model = " + "[" * 5_000,
    "recipe.dense.learning_rate must be a finite number": 'model = "m"\n[dense]\nlearning_rate = 1'
    + 400 * "0",
}


@pytest.mark.parametrize("message", TOML)
def test_a_file_with_mistakes_is_refused(tmp_path, message):
    path = tmp_path / "recipe.toml"
    path.write_text(TOML[message])
    with pytest.raises(UserError) as caught:
        recipes.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        recipes.read(tmp_path / "recipe.toml")
