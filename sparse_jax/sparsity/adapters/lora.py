"""Low-rank adapters under the mask of their weight: LoRA that stays sparse."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from sparse_jax.sparsity.adapters.initial import placed, with_leaves
from sparse_jax.sparsity.adapters.leaves import KERNEL, LORA_A, LORA_B, LORA_SCALE
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError, Masks, Params

TRAINED = (f".*/{LORA_A}", f".*/{LORA_B}")
"""What trains of a model with these adapters, for `OptimizerConfig.trainable`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """A trained low-rank term under the mask of a frozen matrix.

        W_eff = m * (W + alpha / r * A B),   A [in, r], B [r, out]

    A starts Gaussian with variance 1 / in, B at zero, so that training starts at the
    model as it is. Merged ordinary LoRA, m * W + alpha / r * A B, is a dense matrix;
    here the product is pruned like the weight, and merging keeps every zero.

    Reference: LoRA, arXiv 2106.09685.

    Attributes:
      rank: r, at most the smaller side of a matrix.
      alpha: size of the term; changing r then asks for no other learning rate.
      targets: regular expressions of the paths of matrices, without their `/kernel`.
      seed: of A.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("layers/.*",)
    seed: int = 0

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"lora.rank must be at least 1, found {self.rank}")
        if not self.alpha > 0:
            raise InputError(f"lora.alpha must be positive, found {self.alpha}")
        if not self.targets:
            raise InputError("lora.targets is empty; name matrices, or leave lora out")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise InputError(
                    f"lora.targets: {target!r} is no regular expression: {error}; "
                    "correct it"
                ) from error

    def matrices(self, params: Params) -> dict[str, Any]:
        """The kernels that get factors, by path of what they are in.

        Args:
          params: weights or their shapes, without such factors.

        Raises:
          InputError: a target names no matrix, the rank is larger than a matrix, or
            there are factors already.
        """
        leaves = leaf_paths(params)
        kernels = {
            path.removesuffix(f"/{KERNEL}"): leaf
            for path, leaf in leaves.items()
            if path.endswith(f"/{KERNEL}")
        }
        found = {}
        for target in self.targets:
            named = {n: k for n, k in kernels.items() if re.fullmatch(target, n)}
            if not named:
                raise InputError(
                    f"lora.targets: {target!r} names none of the matrices "
                    f"{sorted(kernels)}; correct it, or leave it out"
                )
            found |= named
        for node, kernel in found.items():
            if self.rank > min(kernel.shape[-2:]):
                raise InputError(
                    f"lora.rank = {self.rank} is more than {node} has, a matrix of "
                    f"{kernel.shape[-2]} by {kernel.shape[-1]}; lower it, or choose "
                    "other lora.targets"
                )
            if f"{node}/{LORA_A}" in leaves:
                raise InputError(f"{node}/{LORA_A} is there already; add it only once")
        return dict(sorted(found.items()))


def add_lora(params: Params, masks: Masks, config: LoraConfig) -> tuple[Params, Masks]:
    """Adds the factors of `LoraConfig` beside the matrices that it names.

    Beside each stand `lora_a` [*L, in, r], `lora_b` [*L, r, out] and the constant
    `lora_scale` [*L], alpha / r.

    Args:
      params: weights; on a mesh, the factors lie as `mesh.SHARDING_RULES` say.
      masks: the tree of params, True = kept, None = dense.
      config: what to add.

    Returns:
      Params and masks with the new leaves.

    Raises:
      InputError: see `LoraConfig.matrices`.

    Example:
      >>> params, masks = add_lora(
      ...     {"up": {"kernel": jnp.ones((4, 6))}}, {"up": {"kernel": None}},
      ...     LoraConfig(rank=2, targets=("up",)))
      >>> {name: leaf.shape for name, leaf in params["up"].items()}
      {'kernel': (4, 6), 'lora_a': (4, 2), 'lora_b': (2, 6), 'lora_scale': ()}
    """
    kernels = config.matrices(params)

    def factors(kernels: dict[str, jax.Array]) -> dict[str, jax.Array]:
        made, keys = {}, jax.random.split(jax.random.key(config.seed), len(kernels))
        for key, (node, kernel) in zip(keys, kernels.items(), strict=True):
            *lead, n_in, n_out = kernel.shape
            normal = jax.random.normal(key, (*lead, n_in, config.rank), kernel.dtype)
            made[f"{node}/{LORA_A}"] = normal * n_in**-0.5
            made[f"{node}/{LORA_B}"] = jnp.zeros(
                (*lead, config.rank, n_out), kernel.dtype
            )
            made[f"{node}/{LORA_SCALE}"] = jnp.full(
                lead, config.alpha / config.rank, kernel.dtype
            )
        return made

    return with_leaves(params, masks, placed(factors, kernels))
