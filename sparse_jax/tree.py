"""Leaf paths of nested dicts, and rules that must cover every one of them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.types import InputError

Rules = Sequence[tuple[str, Any]]
"""Ordered (regular expression, value) pairs; the first full match wins."""


def leaf_paths(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts into `{"a/b/c": leaf}`, in sorted order; None is a leaf.

    Example:
      >>> leaf_paths({"b": {"x": 1}, "a": None})
      {'a': None, 'b/x': 1}
    """
    leaves: dict[str, Any] = {}
    for name in sorted(tree):
        value = tree[name]
        if isinstance(value, Mapping):
            leaves |= leaf_paths(value, f"{prefix}{name}/")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def from_paths(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuilds nested dicts from `{"a/b/c": leaf}`; the inverse of `leaf_paths`.

    Example:
      >>> from_paths({"b/x": 1, "a": None})
      {'b': {'x': 1}, 'a': None}
    """
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def match_rules(rules: Rules, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Gives every leaf of `tree` the value of the first rule that matches its path.

    Args:
      rules: (regular expression, value) pairs, tried in order with `re.fullmatch`.
      tree: nested dict whose leaf paths are matched.

    Returns:
      A nested dict of the same structure that holds the rules' values.

    Raises:
      InputError: a leaf is covered by no rule; there is no silent default.

    Example:
      >>> match_rules([(r".*kernel", 2), (r".*", 1)], {"a": {"kernel": 0, "bias": 0}})
      {'a': {'bias': 1, 'kernel': 2}}
    """
    matched: dict[str, Any] = {}
    for path in leaf_paths(tree):
        for pattern, value in rules:
            if re.fullmatch(pattern, path):
                matched[path] = value
                break
        else:
            raise InputError(
                f"rules: leaf {path!r} is covered by none of the "
                f"{len(rules)} rules {[pattern for pattern, _ in rules]}; "
                "add a rule for it, or end with ('.*', ...) to cover the rest"
            )
    return from_paths(matched)
