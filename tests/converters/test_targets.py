"""A target that is not there: the message names those that carry what was asked for."""

from __future__ import annotations

import pytest

from converters.errors import UserError
from converters.format import FORMATS
from converters.targets import TARGETS, Storage, Target, carrying, target

ADVICE = {
    # values of a storage need a system
    "coreml-ios17-int8": "targets with int8 weights: coreml-ios16-int8 and coreml-ios18-int8; ",
    "coreml-ios17-4bit": "targets with 4-bit table weights: coreml-ios16-4bit and coreml-ios18-4bit; ",
    "coreml-ios16-sparse-int8": "targets with sparse int8 weights: coreml-ios18-int8; ",
    "coreml-ios17-sparse-4bit": "targets with sparse 4-bit table weights: coreml-ios18-4bit; ",
    "coreml-ios16-sparse-6-bit": "targets with sparse 6-bit table weights: coreml-ios18-6bit; ",
    # or another format
    "coreml-ios16-float32": (
        "targets with float32 weights: coreai-ios27-float32 and litert-arm64 and litert-web; "
    ),
    "litert-web-4bit": (
        "targets with 4-bit table weights: coreml-ios16-4bit and coreml-ios18-4bit and coreai-ios27-4bit; "
    ),
    # or another runtime
    "litert-web-static-int8": "targets with static int8 weights: litert-arm64-static-int8; ",
    # or are nowhere
    "litert-arm64-sparse-static-int8": "no target has sparse static int8 weights; ",
    # what there is, by another name
    "coreml-ios16-sparse": "coreml-ios16 leaves zeros out already; ",
    "coreml-ios18-8bit": "targets with int8 weights: coreml-ios18-int8; ",
    "coreml-ios18int8": "targets with int8 weights: coreml-ios18-int8; ",
    "CoreML-iOS16": "did you mean coreml-ios16? Else ",
    "litert-arm": "did you mean litert-arm64? Else ",
    # nothing to go by
    "coreml-ios12": "",
    "coreml-ios18-3bit": "",
    "ios": "",
}


@pytest.mark.parametrize("name", ADVICE)
def test_an_unknown_target_is_told_who_carries_it(name: str) -> None:
    with pytest.raises(UserError) as caught:
        target(name)
    assert str(caught.value) == f"unknown target '{name}': {ADVICE[name]}choose from {', '.join(TARGETS)}"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_carries_what_it_says(name: str) -> None:
    found = target(name)
    assert found in carrying(found.storage, sparse=False)
    assert (found in carrying(found.storage, sparse=True)) == found.sparse_values
    with pytest.raises(UserError, match=f"unknown target '{name}'"):
        target(name, next(other for other in FORMATS if other != found.format))


def test_core_ml_leaves_zeros_out_of_small_values_from_ios_18_on() -> None:
    def needs_ios18(target: Target) -> bool:
        return target.format == "coreml" and target.storage is not Storage.FLOAT16

    assert all(t.sparse_values == (t.platform == "iOS18") for t in TARGETS.values() if needs_ios18(t))
