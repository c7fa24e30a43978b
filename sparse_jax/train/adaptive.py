"""Masks that are drawn again while the weights train.

Every k steps each matrix keeps the weights with the highest scores that its pattern
allows. Between that the forward pass sees m * W, and W gets the dense gradient, so that
a pruned weight can come back (straight-through; DPF, arXiv 2006.07253; SR-STE,
arXiv 2102.04010; AST, arXiv 2407.20584). With fixed gradients and a rising sparsity it
is gradual magnitude pruning (arXiv 1710.01878): what is pruned stays pruned.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparse_jax import mesh, models
from sparse_jax.ops import MaskMode
from sparse_jax.sparsity import NM, Pattern, parse, schedule, scores
from sparse_jax.sparsity.adapters import QuantTrainConfig
from sparse_jax.sparsity.masks import project_kernel, to_kernel, to_matrix
from sparse_jax.sparsity.patterns import UnitPattern
from sparse_jax.sparsity.units import project_nm, project_units, units_pruned
from sparse_jax.train.input_norms import input_norms, zero_norms
from sparse_jax.train.mask_change import Change, mask_change
from sparse_jax.tree import from_paths, leaf_paths, match_rules
from sparse_jax.types import Batch, InputError, Masks, Params, State

_NO_GRADIENT = 1e-16
"""Far below the square of a gradient, as Adam's epsilon is below the gradient."""

NORMS = "input_norms"
"""Name in `State.extra` of the running mean squares that Wanda's score reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveConfig:
    """When and how masks are drawn again.

    Attributes:
      pattern: see `sparsity.parse`.
      sparsity: of patterns that do not fix their own; None = every matrix keeps as many
        weights as in the pruned parent, however unevenly that was spread.
      score: "magnitude"; "wanda", with running norms of the inputs; or "fisher", with
        Adam's second moment.
      every: steps between two draws; the first is before the first step.
      freeze_at: step from which the masks stay; None = the last one.
      mode: see `ops.effective_weight`; "fixed" never brings a weight back.
      ramp_steps: the sparsity rises from 0 within so many steps, by the cubic schedule
        (the kept of every M fall to N); 0 = it is there at once.
      norm_decay: of the running mean squares of the inputs, per draw.
    """

    pattern: str = "2:4"
    sparsity: float | None = 0.5
    score: Literal["magnitude", "wanda", "fisher"] = "magnitude"
    every: int = 10
    freeze_at: int | None = None
    mode: MaskMode = "straight_through"
    ramp_steps: int = 0
    norm_decay: float = 0.9

    def __post_init__(self):
        for name, least in (("every", 1), ("ramp_steps", 0), ("freeze_at", 0)):
            found = getattr(self, name)
            if found is not None and found < least:
                raise InputError(f"adaptive.{name} must be >= {least}, found {found}")
        if not 0 <= self.norm_decay < 1:
            raise InputError(
                f"adaptive.norm_decay must be in [0, 1), found {self.norm_decay}"
            )
        if self.sparsity is None and self.ramp_steps:
            raise InputError(
                "adaptive.ramp_steps raises the sparsity from 0 to adaptive.sparsity, "
                "which is None; set it, or set ramp_steps to 0"
            )
        parse(self.pattern, self.sparsity or 0.0)

    def check(self, steps: int) -> None:
        """Raises InputError unless ramp and freeze fit into `steps` of training."""
        # Nothing is drawn after the last step: no step would train such masks.
        last = steps - 1 if self.freeze_at is None else min(self.freeze_at, steps - 1)
        full = max(self.every, self._ramp_end)  # the draw with all of the sparsity
        if self.ramp_steps and full > last:
            raise InputError(
                f"adaptive.ramp_steps = {self.ramp_steps} ends after the masks' last "
                f"step, {last}; lower it or train longer"
            )

    def due(self, step: int) -> bool:
        """Whether masks are drawn after `step` steps, 0 being before the first."""
        frozen = self.freeze_at is not None and step > self.freeze_at
        return step % self.every == 0 and not frozen

    def sparsity_at(self, step: int, final: float) -> float:
        """The sparsity of masks drawn after `step` steps that end at `final`."""
        if not self.ramp_steps:
            return final
        return float(schedule.cubic(step, final=final, begin=0, end=self._ramp_end))

    @property
    def _ramp_end(self) -> int:
        """The last draw within the ramp, which has all of the sparsity."""
        return max(1, self.ramp_steps - self.ramp_steps % self.every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Masks of one model that are drawn again; hashable.

    Attributes:
      config: when and how.
      patterns: (path, pattern) of every pruned matrix.
      pruned: (path, units to prune of each layer) where the config's sparsity is None.
      model: architecture.
      compute: dtype and remat of the forward pass that Wanda's score needs.
      quantize: the grids beside the kernels, which that pass needs as well.
    """

    config: AdaptiveConfig
    patterns: tuple[tuple[str, Pattern], ...]
    pruned: tuple[tuple[str, tuple[int, ...]], ...] = ()
    model: models.LlamaConfig
    compute: models.Compute = models.Compute()
    quantize: QuantTrainConfig | None = None

    @classmethod
    def of(
        cls,
        config: AdaptiveConfig,
        rules: Any,
        model: models.LlamaConfig,
        compute: models.Compute,
        parent: Masks | None = None,
        quantize: QuantTrainConfig | None = None,
    ) -> "Adaptive":
        """With the patterns that `rules` give the leaves of a model.

        Args:
          config: when and how.
          rules: see `tree.match_rules`; values are patterns, None = dense.
          model: architecture.
          compute: dtype and remat.
          parent: masks whose sparsities are kept where the config has none.
          quantize: the grids beside the kernels.

        Raises:
          InputError: the parent's masks are not of the config's pattern.
        """
        matched = leaf_paths(match_rules(rules, models.abstract_params(model)))
        found = {path: p for path, p in matched.items() if p is not None}
        pruned = {}
        if config.sparsity is None and parent is not None:
            pruned = _pruned_units(config.pattern, found, leaf_paths(parent))
        return cls(
            config=config,
            patterns=tuple(found.items()),
            pruned=tuple(pruned.items()),
            model=model,
            compute=compute,
            quantize=quantize,
        )

    def begin(self, state: State) -> State:
        """The state with what the scores keep between draws."""
        if self.config.score != "wanda":
            return state
        norms = zero_norms(state.params, [path for path, _ in self.patterns])
        return dataclasses.replace(state, extra=state.extra | {NORMS: norms})

    def first_masks(self, params: Params, masks: Masks) -> Masks:
        """What the largest weights make of `masks`; draws before any training."""
        if self.config.sparsity is None:
            return masks
        leaves, found = leaf_paths(params), leaf_paths(masks)
        for path, pattern in self.patterns:
            score = scores.magnitude(leaves[path])
            found[path] = project_kernel(pattern, score)
        return from_paths(found)

    def counts(self, params: Params, step: int) -> dict[str, np.ndarray]:
        """Units to prune of each matrix after `step` steps; of N:M, the kept of M."""
        leaves, found, pruned = leaf_paths(params), {}, dict(self.pruned)
        for path, pattern in self.patterns:
            if isinstance(pattern, UnitPattern) and self.config.sparsity is None:
                found[path] = np.asarray(pruned[path], np.int32)
            elif isinstance(pattern, UnitPattern):
                sparsity = self.config.sparsity_at(step, float(pattern.sparsity))
                *layers, n_in, n_out = leaves[path].shape
                found[path] = pattern.at(sparsity).counts((*layers, n_out, n_in))
            elif isinstance(pattern, NM):
                sparsity = self.config.sparsity_at(step, pattern.sparsity)
                kept = max(pattern.n, pattern.m - int(pattern.m * sparsity))
                found[path] = np.asarray(kept, np.int32)
        return found


def _pruned_units(
    name: str, patterns: dict[str, Pattern], masks: dict[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Units that masks prune of each layer of every matrix."""
    pruned = {}
    for path, pattern in patterns.items():
        if not isinstance(pattern, UnitPattern):
            continue
        if masks[path] is None:
            raise InputError(
                f"adaptive.sparsity None takes over the parent's masks, but {path} has "
                "none; set adaptive.sparsity, or prune the parent by the same rules"
            )
        mask_OI = to_matrix(masks[path])
        units, weights = (units_pruned(mask_OI, u) for u in (pattern.unit, (1, 1)))
        if (units * math.prod(pattern.unit) != weights).any():
            raise InputError(
                f"adaptive.sparsity None takes over the parent's masks, but {path} "
                f"has zeros outside of the pattern {name!r}; set adaptive.sparsity, "
                "or prune the parent in this pattern"
            )
        pruned[path] = tuple(int(n) for n in units)
    return pruned


@functools.partial(jax.jit, static_argnames="adaptive", donate_argnames="state")
def refresh(
    state: State, counts: dict[str, jax.Array], batch: Batch, *, adaptive: Adaptive
) -> tuple[State, Change]:
    """Draws all masks again.

    Args:
      state: consumed; its buffers are reused.
      counts: see `Adaptive.counts`.
      batch: text whose activations Wanda's score sees; others do not read it.
      adaptive: what to draw.

    Returns:
      The state with new masks, and what `mask_change` finds in every matrix.
    """
    extra = state.extra
    if adaptive.config.score == "wanda":
        new = input_norms(state, batch, adaptive)
        rate = adaptive.config.norm_decay
        norms = jax.tree.map(
            lambda old, new: rate * old + (1 - rate) * new, extra[NORMS], new
        )
        extra = extra | {NORMS: norms}
    params, masks = leaf_paths(state.params), leaf_paths(state.masks)
    second = leaf_paths(optax.tree.get(state.opt, "nu"))
    change = {}
    for path, pattern in adaptive.patterns:
        old, weights = masks[path], params[path]
        score = _score(adaptive.config.score, weights, second[path], extra, path)
        prior = old if adaptive.config.mode == "fixed" else jnp.ones_like(old)
        new = _project(pattern, score, to_matrix(prior), counts[path])
        masks[path] = to_kernel(new)
        change[path] = mask_change(weights, old, masks[path])
        if adaptive.config.mode == "fixed":
            params[path] = jnp.where(masks[path], weights, 0)
    state = dataclasses.replace(
        state, params=from_paths(params), masks=from_paths(masks), extra=extra
    )
    return mesh.constrain_tree(state), change


def _score(kind, weights, second_moment, extra, path):
    weights_OI = to_matrix(weights)
    if kind == "wanda":
        return scores.wanda(weights_OI, extra[NORMS][path])
    if kind == "fisher":
        # Before the first step nothing is known yet: the largest weights stay.
        return scores.fisher(weights_OI, to_matrix(second_moment) + _NO_GRADIENT)
    return scores.magnitude(weights_OI)


def _project(pattern, score_OI, prior_OI, counts):
    if isinstance(pattern, NM):
        return project_nm(score_OI, prior_OI, counts, pattern.m)
    if pattern.unit != (1, 1):
        score_OI = score_OI**2  # units are ranked by the sum over their members
    return project_units(score_OI, prior_OI, counts, pattern.unit)
