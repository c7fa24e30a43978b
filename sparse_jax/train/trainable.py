"""Which leaves of a model train; the others have no gradient and no moments."""

import re

from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Tree

Patterns = tuple[str, ...] | None
"""Regular expressions of leaf paths, each matched whole; None = every leaf."""


def partition(tree: Tree, patterns: Patterns) -> tuple[Tree, Tree]:
    """Cuts params, or their masks, into the leaves that train and the frozen ones.

    Args:
      tree: nested dicts.
      patterns: of the leaves that train.

    Returns:
      Two trees of the same paths as in `tree`, each with its own leaves only; the
      second is empty when everything trains.

    Raises:
      InputError: a pattern matches no leaf.

    Example:
      >>> partition({"up": {"kernel": 1, "lora_a": 2}, "norm": None}, (".*/lora_a",))
      ({'up': {'lora_a': 2}}, {'norm': None, 'up': {'kernel': 1}})
    """
    if patterns is None:
        return tree, {}
    leaves = leaf_paths(tree)
    trained = {}
    for pattern in patterns:
        found = {p: leaf for p, leaf in leaves.items() if re.fullmatch(pattern, p)}
        if not found:
            raise InputError(
                f"optimizer.trainable: {pattern!r} matches none of the {len(leaves)} "
                f"leaves, such as {next(iter(leaves))!r}; correct it, or leave it out"
            )
        trained |= found
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return from_paths(trained), from_paths(frozen)


def join(trained: Tree, frozen: Tree) -> Tree:
    """The whole tree again; the inverse of `partition`."""
    if not frozen:
        return trained
    return from_paths(leaf_paths(trained) | leaf_paths(frozen))
