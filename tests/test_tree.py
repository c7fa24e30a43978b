"""Leaf paths and rules."""

import pytest

from sparse_jax.tree import from_paths, leaf_paths, match_rules
from sparse_jax.types import InputError

TREE = {"layers": {"q": {"kernel": 1, "bias": None}}, "norm": {"scale": 2}}


def test_paths_round_trip_with_none_leaves():
    leaves = leaf_paths(TREE)
    assert list(leaves) == ["layers/q/bias", "layers/q/kernel", "norm/scale"]
    assert from_paths(leaves) == TREE


def test_the_first_full_match_wins():
    rules = [(r"layers/.*/kernel", "a"), (r"layers/.*", "b"), (r".*", "c")]
    assert leaf_paths(match_rules(rules, TREE)) == {
        "layers/q/bias": "b",
        "layers/q/kernel": "a",
        "norm/scale": "c",
    }


def test_a_rule_matches_whole_paths_only():
    with pytest.raises(InputError, match="'layers/q/bias' is covered by none of the 1"):
        match_rules([("layers", 1)], TREE)
