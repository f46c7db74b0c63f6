"""What images go through by torchvision: nothing but what is drawn for the image, presets, mixing."""

import pytest
import torch

from edgeprune.errors import UserError
from edgeprune.recipe import Recipe
from edgeprune.training.config import PRESETS, Augment
from edgeprune.training.mosaic import mosaic
from edgeprune.training.transforms import change_of, mixed

IMAGE = torch.arange(3 * 48 * 48).reshape(3, 48, 48).remainder(251).to(torch.uint8)
KINDS = {
    "least_area": Augment("none", least_area=0.3),
    "colour": Augment("none", colour=0.5),
    "randaugment": Augment("none", policy="randaugment"),
    "trivialaugment": Augment("none", policy="trivialaugment"),
    "augmix": Augment("none", policy="augmix"),
    "erasing": Augment("none", erase_fraction=1.0),
    "standard": Augment("standard"),
    "strong": Augment("strong"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_changes_by_seed_epoch_and_index_alone(kind):
    augment = KINDS[kind].filled()
    change = change_of(augment, 1, 2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    images = [change(index, IMAGE) for index in range(4)]
    assert torch.equal(torch.rand(1), expected)  # What else is drawn is left alone.
    assert all(image.shape == IMAGE.shape and image.dtype == torch.uint8 for image in images)
    assert any(not torch.equal(image, IMAGE) for image in images)
    assert any(not torch.equal(image, images[0]) for image in images[1:])
    torch.manual_seed(99)
    assert torch.equal(change(2, IMAGE), images[2])
    others = [change_of(augment, 1, 3)(index, IMAGE) for index in range(4)]
    assert any(not torch.equal(one, other) for one, other in zip(images, others, strict=True))


def test_presets_are_filled_in_and_each_field_can_be_another():
    assert change_of(Augment("none").filled(), 0, 0) is None
    assert change_of(Augment().filled(), 0, 0) is None
    assert (Augment().filled().shift_px, Augment().filled().flip) == (4, None)
    assert (Augment("none").filled().shift_px, Augment("none").filled().flip) == (0, False)
    strong = Augment("strong", cutmix=0.0, shift_px=2).filled()
    assert (strong.cutmix, strong.shift_px, strong.mixup) == (0.0, 2, PRESETS["strong"]["mixup"])


@pytest.mark.parametrize("augment", [Augment("none", mixup=1.0), Augment("none", cutmix=1.0)])
def test_images_are_mixed_with_their_labels(augment):
    torch.manual_seed(0)
    images = torch.stack([torch.full((3, 16, 16), float(label)) for label in range(4)])
    mix = mixed(augment.filled(), 4)
    for _ in range(5):
        changed, shares = mix(images, torch.arange(4))
        # Each image has the value of its label: what it holds of each is what its label says.
        torch.testing.assert_close(changed.mean((1, 2, 3)), shares @ torch.arange(4.0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert mixed(Augment().filled(), 4) is None


@pytest.mark.parametrize(
    ("augment", "told"),
    [
        (Augment("heavy"), "augment.preset 'heavy': choose from auto, none, light, standard, strong"),
        (Augment(policy="auto"), "augment.policy 'auto': choose from none, randaugment"),
        (Augment(least_area=0.0), "augment.least_area 0.0: above 0 to 1"),
        (Augment(mixup=-1.0), "augment.mixup -1.0: 0 to 10"),
    ],
)
def test_what_makes_no_sense_is_refused(augment, told):
    with pytest.raises(UserError) as caught:
        Recipe("mobilenet_v3_small", augment=augment)
    assert told in str(caught.value)


def test_labels_that_lie_in_images_are_not_left_behind():
    with pytest.raises(UserError, match=r"augment\.least_area of preset standard: it changes images alone"):
        Recipe("lraspp_mobilenet_v3_large", task="segmentation", augment=Augment("standard"))


def test_images_side_by_side_are_one_picture():
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(mosaic(IMAGE.expand(10, 3, 48, 48))))
    assert picture.size == (768, 192)
