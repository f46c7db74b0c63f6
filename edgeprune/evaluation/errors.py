"""What a variant gets wrong where the dense model holds: confusions, samples with their pictures, robustness.

All of it is of the torch variants; how far each file agrees with its own is in its row of the report. What
the pages show is kept in the run folder, so that they are made again without the images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from edgeprune.data.dataset import Data, Split, fixed_subset
from edgeprune.evaluation import corruptions
from edgeprune.evaluation.records import Confusion, Examination, Sample, thumbnail
from edgeprune.tasks.task import Analysed, Analysis

DENSE = "dense"
ROBUSTNESS_IMAGES = 500
CONFUSIONS, IMAGES_PER_CONFUSION = 5, 3
SAMPLES, AGREEING_SAMPLES = 12, 4
THUMBNAIL_PX, THUMBNAIL_QUALITY = 96, 75


def examine(variant: Analysed, dense: Analysed, data: Data, advance: Callable[[int], None]) -> Analysis:
    """Look at what a variant gets wrong, and at the pictures that show it.

    Args:
        variant: the one to look at; its outputs are (n, classes).
        dense: the baseline.
        data: the run's.
        advance: told how many of `corruptions.steps()` are done.
    """
    held_out = data.held_out
    predicted, dense_predicted = variant.outputs.argmax(1), dense.outputs.argmax(1)
    right, dense_right = predicted == held_out.labels, dense_predicted == held_out.labels
    subset = fixed_subset(held_out, ROBUSTNESS_IMAGES)
    source = (
        "all held-out images"
        if len(subset) == len(held_out)
        else (f"a fixed subset of the {len(held_out):,} held-out images, each class with its share")
    )
    record = Examination(
        variant=variant.name,
        weights_sha256=variant.weights_sha256,
        dense_sha256=dense.weights_sha256,
        images=len(held_out),
        both_right=int((right & dense_right).sum()),
        only_dense_right=int((~right & dense_right).sum()),
        only_variant_right=int((right & ~dense_right).sum()),
        confusions=confusions(predicted, dense_predicted, held_out.labels, data.classes),
        samples=()
        if variant.name == DENSE
        else samples(variant.outputs, dense.outputs, held_out.labels, data.classes),
        robustness=corruptions.robustness(
            variant.module, subset, source, data.classes, variant.normalization, advance
        ),
    )
    return Analysis(record, thumbnails(_places(record), held_out))


def confusions(
    predicted: Tensor, dense: Tensor, labels: Tensor, classes: Sequence[str]
) -> tuple[Confusion, ...]:
    """The pairs of classes taken for each other most often.

    Args:
        predicted: (n,) classes a variant names.
        dense: (n,) classes the dense model names.
        labels: (n,) classes shown.
        classes: names, in the order of the labels.
    """
    count = len(classes)
    # One number a pair: label * count + predicted.
    pairs, dense_pairs = (labels * count + said for said in (predicted, dense))
    wrong, times = np.unique(pairs[predicted != labels].numpy(), return_counts=True)
    found = []
    for pair in wrong[np.argsort(-times, kind="stable")][:CONFUSIONS].tolist():
        places = (pairs == pair).nonzero().flatten()
        # Those that the dense model takes for something else come first: they are the variant's own doing.
        own_first = places[(dense_pairs[places] == pair).long().argsort(stable=True)]
        label = pair // count
        found.append(
            Confusion(
                label=classes[label],
                predicted=classes[pair % count],
                images=len(places),
                dense_images=int((dense_pairs == pair).sum()),
                label_images=int((labels == label).sum()),
                places=tuple(own_first[:IMAGES_PER_CONFUSION].tolist()),
            )
        )
    return tuple(found)


def samples(
    outputs: Tensor, dense_outputs: Tensor, labels: Tensor, classes: Sequence[str]
) -> tuple[Sample, ...]:
    """Images on which a variant and the dense model differ, filled up where they hardly do.

    Args:
        outputs: (n, classes) of the variant.
        dense_outputs: (n, classes) of the dense model.
        labels: (n,) classes shown.
        classes: names, in the order of the labels.
    """
    confidence, predicted = outputs.softmax(1).max(1)
    dense_confidence, dense = dense_outputs.softmax(1).max(1)
    differ = (predicted != dense).nonzero().flatten().tolist()
    agree = (predicted == dense).nonzero().flatten()
    # Among those where they agree, the ones on which the variant lost most confidence.
    shaken = agree[(confidence - dense_confidence)[agree].argsort(stable=True)].tolist()
    chosen = _spread(differ, SAMPLES)
    chosen += shaken[: max(AGREEING_SAMPLES - len(chosen), 0)]
    return tuple(
        Sample(
            place=place,
            label=classes[int(labels[place])],
            dense=classes[int(dense[place])],
            dense_confidence=float(dense_confidence[place]),
            predicted=classes[int(predicted[place])],
            confidence=float(confidence[place]),
        )
        for place in chosen
    )


def _spread(places: Sequence[int], count: int) -> list[int]:
    """Up to `count` of them, from first to last evenly: a folder's images are sorted by class."""
    chosen = torch.linspace(0, len(places) - 1, min(count, len(places))).long().tolist()
    return [places[index] for index in chosen]


def _places(examination: Examination) -> set[int]:
    shown = {sample.place for sample in examination.samples}
    return shown.union(*(confusion.places for confusion in examination.confusions))


def thumbnails(places: Iterable[int], split: Split) -> dict[str, bytes]:
    """Small JPEGs of some images of a split, by their paths in a run folder."""
    from PIL import Image

    found = {}
    for place in sorted(places):
        images, _ = split.batch(torch.tensor([place]))
        image = Image.fromarray(images[0].permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
        found[thumbnail(place)] = file.getvalue()
    return found
