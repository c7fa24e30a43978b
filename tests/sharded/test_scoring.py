"""Log-likelihoods on 8 virtual devices are those of one."""

import pytest

from tests.sharded.run import numbers_on_eight


def test_scores_are_those_of_one_device():
    found = numbers_on_eight("score_on_meshes.py")
    for one, eight in zip(found["one"], found["eight"], strict=True):
        assert eight[0] == pytest.approx(one[0], rel=1e-5)
        assert eight[1:] == one[1:]
    # Far from log(64) for each token, or the check would not see much.
    assert max(abs(row[0] / row[2] + 4.16) for row in found["one"]) > 0.3
