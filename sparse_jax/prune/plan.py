"""Which pattern every matrix gets and which are rounded, checked before any work."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool

from sparse_jax.models import LlamaConfig, abstract_params
from sparse_jax.prune.allocate import budget, count_units
from sparse_jax.prune.blockwise import LayerMasks
from sparse_jax.prune.config import LINEARS, PruneConfig
from sparse_jax.sparsity import Pattern
from sparse_jax.sparsity.masks import check_rule, to_matrix
from sparse_jax.sparsity.patterns import NM, UnitPattern
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError


class Plan(NamedTuple):
    """What is pruned, and what is rounded.

    Attributes:
      layers: for every layer, patterns by path in the whole model.
      free: for every layer, those of them whose sparsity is the run's to choose: the
        run's own pattern, if that has no fixed one.
      rounded: for every layer, the paths of the matrices that are rounded.
    """

    layers: list[dict[str, Pattern]]
    free: list[dict[str, UnitPattern]]
    rounded: list[list[str]]

    @property
    def masked(self) -> list[str]:
        """The paths that are pruned in some layer."""
        return list(dict.fromkeys(path for layer in self.layers for path in layer))


def make_plan(
    model_config: LlamaConfig,
    config: PruneConfig,
    layer_masks: Callable[[int], LayerMasks],
) -> Plan:
    """Resolves the rules for every matrix, and checks all of them.

    A rule matches a stacked leaf, "layers/attention/q/kernel", in all layers, or one
    layer of it, "layers/3/attention/q/kernel"; the first match wins.

    Args:
      model_config: architecture.
      config: rules, pattern and sparsity.
      layer_masks: index -> what is pruned already and must stay so.

    Raises:
      InputError: a leaf is uncovered, a rule prunes what is not a linear of a block, a
        pattern does not divide its matrix, it prunes less than the masks do, or the
        allocation has nothing or too little to choose.
    """
    depth = range(model_config.n_layers)
    plan = Plan([{} for _ in depth], [{} for _ in depth], [[] for _ in depth])
    rules = [
        (regex, value, pattern)
        for (regex, value), (_, pattern) in zip(
            config.rules, config.pattern_rules(), strict=True
        )
    ]
    leaves = leaf_paths(abstract_params(model_config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    _check_rules(
        "prune.rules", [regex for regex, _ in config.rules], shapes, len(plan.layers)
    )
    for path, shape in shapes.items():
        stacked = path.startswith("layers/")
        for index in range(model_config.n_layers) if stacked else (None,):
            _, value, pattern = _first_match(rules, path, index)
            if pattern is None:
                continue
            _check_linear(path, pattern)
            check_rule(pattern, shape, path)
            assert index is not None  # linears are stacked
            plan.layers[index][path] = pattern
            if value == "pattern" and isinstance(pattern, UnitPattern):
                plan.free[index][path] = pattern
    if config.quantize is not None:
        _plan_rounding(plan, config.quantize.leave_out, shapes)
    counts = []
    for index, patterns in enumerate(plan.layers):
        free = plan.free[index] if config.allocation.kind != "uniform" else {}
        masks = layer_masks(index)
        fixed = {path: patterns[path] for path in patterns if path not in free}
        _check_priors(index, fixed, masks, found=config.quantize is not None)
        for path, pattern in free.items():
            prior = to_matrix(masks[path]) if path in masks else None
            counts.append(count_units(pattern, _matrix(shapes[path]), prior))
    if config.allocation.kind != "uniform":
        budget(counts, config.sparsity, config.allocation)
    return plan


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[-1], shape[-2]


def _names(path: str, index: int | None) -> list[str]:
    """What a rule may call a leaf: in all layers, and in one."""
    if index is None:
        return [path]
    return [path, path.replace("layers/", f"layers/{index}/", 1)]


def _plan_rounding(
    plan: Plan, leave_out: tuple[str, ...], shapes: Iterable[str]
) -> None:
    """Adds the linears of the blocks, without those that stay in floats by rule."""
    linears = [path for path in shapes if re.fullmatch(LINEARS, path)]
    _check_rules("quantize.leave_out", leave_out, linears, len(plan.layers))
    for index, paths in enumerate(plan.rounded):
        for path in linears:
            names = _names(path, index)
            if not any(re.fullmatch(regex, n) for regex in leave_out for n in names):
                paths.append(path)


def _check_rules(
    where: str, rules: Iterable[str], paths: Iterable[str], n_layers: int
) -> None:
    """Raises InputError for a rule that no leaf of the model matches: a misspelling."""
    layers = (None, *range(n_layers))
    names = {name for path in paths for i in layers for name in _names(path, i)}
    for regex in rules:
        if not any(re.fullmatch(regex, name) for name in names):
            raise InputError(
                f"{where}: {regex!r} matches nothing of this model, whose leaves "
                f"are called {min(names)!r} or {max(names)!r}, for example"
            )


def _first_match(rules, path: str, index: int | None):
    names = _names(path, index)
    for rule in rules:
        if any(re.fullmatch(rule[0], name) for name in names):
            return rule
    raise InputError(
        f"prune.rules: leaf {names[-1]!r} is covered by none of the rules "
        f"{[regex for regex, _, _ in rules]}; add a rule for it, or end with "
        "('.*', 'dense') to cover the rest"
    )


def _check_linear(path: str, pattern: Pattern) -> None:
    if not re.fullmatch(LINEARS, path):
        raise InputError(
            f"prune.rules: {path} gets pattern {pattern}, but only the linears of "
            "decoder blocks can be pruned; make its rule 'dense'"
        )


def _check_priors(
    index: int, patterns: dict[str, Pattern], masks: LayerMasks, *, found: bool
) -> None:
    """Raises InputError for masks that prune more than their patterns.

    Args:
      index: the layer.
      patterns: by path.
      masks: by path.
      found: N:M is meant to be the pattern of the zeros that are there, so that a group
        with more of them is a mistake, too.
    """
    for path, prior in masks.items():
        pattern = patterns.get(path)
        prior_OI = to_matrix(prior)
        try:
            if isinstance(pattern, UnitPattern):
                pattern.counts(prior_OI.shape, prior_OI)
            elif found and isinstance(pattern, NM):
                _check_groups(pattern, prior_OI)
        except InputError as error:
            raise InputError(f"block {index}, {path}: {error}") from None


def _check_groups(pattern: NM, prior_OI: Bool[Array, "out in"]) -> None:
    kept_OG = np.asarray(prior_OI).reshape(len(prior_OI), -1, pattern.m).sum(-1)
    if (kept_OG >= pattern.n).all():
        return
    row, group = np.argwhere(kept_OG < pattern.n)[0]
    raise InputError(
        f"pattern {pattern} keeps {pattern.n} of every {pattern.m} inputs, but the "
        f"zeros found leave {kept_OG[row, group]} in output {row}, inputs "
        f"{group * pattern.m} to {(group + 1) * pattern.m - 1}; use pattern 'found', "
        "or one that these zeros fit"
    )
