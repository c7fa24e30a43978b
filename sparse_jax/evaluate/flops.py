"""Training arithmetic of a model, as the report and the benchmarks count it.

    flops per token = 6 P + 6 L d T

P is the number of weights that meet a token in a matmul, the output head included
(tied or not) and the embedding look-up left out: 2 flops forward and 4 backward per
weight (arXiv 2001.08361, section 2.1). The second term is attention: scores and
context cost 12 L d T over forward and backward (arXiv 2204.02311, appendix B), halved
because a causal query sees T / 2 keys on average. d = N H is the width of all heads.
"""

from typing import Any

import jax
import numpy as np

from sparse_jax import tree
from sparse_jax.models import LlamaConfig
from sparse_jax.sparsity.masks import count_per_matrix
from sparse_jax.types import InputError, Masks


def matmul_weights(config: LlamaConfig, masks: Masks | None = None) -> int:
    """Number of weights a token is multiplied by, output head included.

    Args:
      config: architecture.
      masks: True = kept; only kept weights of a masked matrix count. None = dense.

    Raises:
      InputError: a mask's size is not its matrix's.

    Example:
      >>> from sparse_jax.models import sizes
      >>> matmul_weights(sizes.get("llama2_7b"))
      6607077376
    """
    kept = {path: size * config.n_layers for path, size in _matrices(config).items()}
    for path, mask in tree.leaf_paths(masks or {}).items():
        if mask is None:
            continue
        if kept.get(path) != np.size(mask):
            raise InputError(
                f"masks: {path} has shape {np.shape(mask)}, "
                f"but the model has {kept.get(path, 0)} prunable weights there; "
                "use the masks of this model"
            )
        kept[path] = _count(mask)
    return sum(kept.values()) + config.d_model * config.vocab_size


def training_flops_per_token(
    config: LlamaConfig, seq_len: int, masks: Masks | None = None
) -> int:
    """Floating-point operations of one training step, per token.

    Args:
      config: architecture.
      seq_len: T, tokens in a training sequence.
      masks: count only the weights that are kept: what hardware that skips zeros would
        do. None counts every weight: what dense hardware does.

    Example:
      >>> from sparse_jax.models import sizes
      >>> training_flops_per_token(sizes.get("llama2_7b"), 4096) / 1e9
      42.863689728
    """
    attention = 6 * config.n_layers * config.n_heads * config.head_width * seq_len
    return 6 * matmul_weights(config, masks) + attention


def _matrices(config: LlamaConfig) -> dict[str, int]:
    """Weights of each prunable matrix of one layer."""
    width, hidden = config.d_model, config.d_ff
    query = width * config.n_heads * config.head_width
    key = width * config.kv_heads * config.head_width
    attention = {"q": query, "k": key, "v": key, "o": query}
    mlp = dict.fromkeys(("gate", "up", "down"), width * hidden)
    return {
        f"layers/{part}/{name}/kernel": size
        for part, sizes in (("attention", attention), ("mlp", mlp))
        for name, size in sizes.items()
    }


def _count(mask: Any) -> int:
    if isinstance(mask, jax.Array):
        return int(count_per_matrix(mask).sum())  # wherever its parts lie
    # One layer at a time: a 70B model's largest mask alone has 2e10 entries.
    return sum(int(np.count_nonzero(layer)) for layer in mask)
