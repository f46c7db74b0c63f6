"""Standard errors and intervals of paired differences, held against the binomial distribution itself."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.evaluation.paired import between, points_lost


@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.01), (0.01, 0.01), (0.002, 0.0)])
def test_the_bounds_hold_as_often_as_they_say(lost, gained):
    random, images, tries = np.random.default_rng(0), 450, 4000
    drawn = random.multinomial(images, [lost, gained, 1 - lost - gained], size=tries)
    found = [between(int(a), int(b), images, 0.95) for a, b, _ in drawn]
    true = 100 * (lost - gained)
    assert np.mean([one.most >= true for one in found]) > 0.93
    assert np.mean([one.least <= true for one in found]) > 0.93


def test_the_standard_error_is_that_of_repeated_draws():
    random, images = np.random.default_rng(0), 1000
    drawn = random.multinomial(images, [0.04, 0.02, 0.94], size=4000)
    spread = (100 * (drawn[:, 0] - drawn[:, 1]) / images).std()
    assert points_lost(40, 20, images)[1] == pytest.approx(spread, rel=0.05)
