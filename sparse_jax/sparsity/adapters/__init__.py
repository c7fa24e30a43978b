"""Trainable leaves beside a kernel: low-rank terms (SLoRB, LoRA), learned scales.

They live in the params tree, so that optimizers, checkpoints, shardings and gradients
take them as they take any weight:

    .../kernel    [*L, in, out]
    .../slorb_s   [*L, r, out]     S, r = in / group
    .../slorb_x   [*L, in, r]      X, only where the projection is trained
    .../scale     [*L, 2, out]     for the first and the second half of the inputs
    .../lora_a    [*L, in, r]      A
    .../lora_b    [*L, r, out]     B
    .../lora_scale [*L]            alpha / r, a constant
    .../quant_scale   [*L, groups, out]  of the grid that the kernel is rounded to
    .../quant_zero    [*L, groups, out]  its zero points, where it has any
    .../outlier_index [*L, n]      flat index into [out, in]
    .../outlier_value [*L, n]      what is added there

The masks tree holds None for them. The model never sees them: it takes the plain
weights of `effective_params`,

    W_eff = scale * m * q(W + alpha / r * A B) + X S + outliers

X S and outliers stand in for what is pruned and rounded away, and stay leaves of their
own; scales and A B are folded into the weights at the end of training, and keep their
zeros; then the weights are rounded to their grids.

Source of X S: AST, https://arxiv.org/abs/2407.20584 (Sparse Low-Rank Boosting); of the
scales: CAST, https://arxiv.org/abs/2509.25996; of A B, here under the mask: LoRA,
https://arxiv.org/abs/2106.09685.
"""

from sparse_jax.sparsity.adapters.effective import (
    effective_params,
    fold_lora,
    fold_scales,
    low_rank_product,
    merge,
    outlier_matrix,
)
from sparse_jax.sparsity.adapters.grids import add_grids, fold_grids, settle
from sparse_jax.sparsity.adapters.initial import (
    LowRankConfig,
    add_low_rank,
    add_scales,
)
from sparse_jax.sparsity.adapters.leaves import (
    OUTLIERS,
    Adapter,
    attach,
    check,
    masks_of,
    split,
    storage_bits,
)
from sparse_jax.sparsity.adapters.lora import TRAINED as LORA_TRAINED
from sparse_jax.sparsity.adapters.lora import LoraConfig, add_lora
from sparse_jax.sparsity.adapters.quant_config import QuantTrainConfig

__all__ = [
    "LORA_TRAINED",
    "OUTLIERS",
    "Adapter",
    "LoraConfig",
    "LowRankConfig",
    "QuantTrainConfig",
    "add_grids",
    "add_lora",
    "add_low_rank",
    "add_scales",
    "attach",
    "check",
    "effective_params",
    "fold_grids",
    "fold_lora",
    "fold_scales",
    "low_rank_product",
    "masks_of",
    "merge",
    "outlier_matrix",
    "settle",
    "split",
    "storage_bits",
]
