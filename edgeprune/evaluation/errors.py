"""What a variant gets wrong where the dense model holds: confusions, samples with their pictures, robustness.

All of it is of the torch variants; how far each file agrees with its own is in its row of the report. What
the pages show is kept in the run folder, so that they are made again without the images.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from converters.facts import Normalization, sha256
from converters.files import replacing
from edgeprune import parsing
from edgeprune.data.dataset import Data, Split
from edgeprune.errors import UserError
from edgeprune.evaluation import corruptions as robustness
from edgeprune.evaluation.sensitivity import fixed_subset
from edgeprune.pipeline.run_folder import Run, write_json
from edgeprune.report.records import Confusion, Examination, MapExamination, Sample, thumbnail

T = TypeVar("T", Examination, MapExamination)
DENSE = "dense"
ROBUSTNESS_IMAGES = 500
CONFUSIONS, IMAGES_PER_CONFUSION = 5, 3
SAMPLES, AGREEING_SAMPLES = 12, 4
THUMBNAIL_PX, THUMBNAIL_QUALITY = 96, 75


def examine(
    variant: str,
    module: nn.Module,
    outputs: Tensor,
    dense_outputs: Tensor,
    data: Data,
    normalization: Normalization,
    folder: Run,
    advance: Callable[[int], None],
) -> Examination:
    """Look at what a variant gets wrong, and keep it in the run folder.

    Args:
        variant: its name.
        module: in eval mode.
        outputs: (n, classes) of it on the held-out images.
        dense_outputs: (n, classes) of the dense model on the same.
        data: the run's.
        normalization: what the module takes.
        folder: where its weights are, and where this is kept.
        advance: told how many of `robustness.steps()` are done.
    """
    held_out = data.held_out
    predicted, dense = outputs.argmax(1), dense_outputs.argmax(1)
    right, dense_right = predicted == held_out.labels, dense == held_out.labels
    subset = fixed_subset(held_out, ROBUSTNESS_IMAGES)
    source = (
        "all held-out images"
        if len(subset) == len(held_out)
        else (f"a fixed subset of the {len(held_out):,} held-out images, each class with its share")
    )
    examination = Examination(
        variant=variant,
        weights_sha256=sha256(folder.weights(variant)),
        dense_sha256=sha256(folder.weights(DENSE)),
        images=len(held_out),
        both_right=int((right & dense_right).sum()),
        only_dense_right=int((~right & dense_right).sum()),
        only_variant_right=int((right & ~dense_right).sum()),
        confusions=confusions(predicted, dense, held_out.labels, data.classes),
        samples=() if variant == DENSE else samples(outputs, dense_outputs, held_out.labels, data.classes),
        robustness=robustness.measure(module, subset, source, data.classes, normalization, advance),
    )
    _keep_thumbnails(_places(examination), held_out, folder)  # first: what names them comes after
    write_json(folder.examination(variant), dataclasses.asdict(examination))
    return examination


def kept(folder: Run, variant: str) -> Examination | None:
    """What was found out about a variant, see `read_kept`."""
    return read_kept(folder, variant, Examination)


def read_kept(folder: Run, variant: str, record: type[T]) -> T | None:
    """A record of what was found out about a variant, if its weights and the dense ones are still those.

    Raises:
        UserError: it is there and cannot be read.
    """
    path = folder.examination(variant)
    if not path.exists():
        return None
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it, and the run makes it anew") from None
    found = parsing.build(record, plain, str(path))
    digests = {variant: found.weights_sha256, DENSE: found.dense_sha256}
    weights = {name: folder.weights(name) for name in digests}
    changed = [name for name, file in weights.items() if file.exists() and sha256(file) != digests[name]]
    return None if changed else found


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


def _keep_thumbnails(places: Iterable[int], split: Split, folder: Run) -> None:
    """Write small JPEGs of held-out images; those of an earlier variant are there already."""
    from PIL import Image

    for place in sorted(places):
        path = folder.folder / thumbnail(place)
        if path.exists():
            continue
        image = Image.fromarray(split.images[place].permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
        with replacing(path) as temporary:
            temporary.write_bytes(file.getbuffer())
