"""Trainable leaves beside a pruned kernel: low-rank factors (SLoRB), learned scales.

They live in the params tree, so that optimizers, checkpoints, shardings and gradients
take them as they take any weight:

    .../kernel    [*L, in, out]
    .../slorb_s   [*L, r, out]     S, r = in / group
    .../slorb_x   [*L, in, r]      X, only where the projection is trained
    .../scale     [*L, 2, out]     for the first and the second half of the inputs

The masks tree holds None for them. The model never sees them: it takes the plain
weights of `effective_params`,

    W_eff = scale * (m * W) + X S

Source of the low-rank term: AST, https://arxiv.org/abs/2407.20584 (Sparse Low-Rank
Boosting); of the scales: CAST, https://arxiv.org/abs/2509.25996, which folds them into
the weights at the end of training.
"""

from sparse_jax.sparsity.adapters.effective import (
    effective_params,
    fold_scales,
    low_rank_product,
    merge,
)
from sparse_jax.sparsity.adapters.initial import (
    LowRankConfig,
    add_low_rank,
    add_scales,
)
from sparse_jax.sparsity.adapters.leaves import (
    Adapter,
    attach,
    check,
    masks_of,
    split,
    storage_bits,
)

__all__ = [
    "Adapter",
    "LowRankConfig",
    "add_low_rank",
    "add_scales",
    "attach",
    "check",
    "effective_params",
    "fold_scales",
    "low_rank_product",
    "masks_of",
    "merge",
    "split",
    "storage_bits",
]
