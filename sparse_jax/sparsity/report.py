"""Exact sparsity of each matrix, of the pruned matrices together and of a whole model.

Counts are integers read from the masks, and every parameter counts once (tied
embeddings are stored once), so the fractions are exact.
"""

from typing import Any

import numpy as np

from sparse_jax.sparsity.masks import count_per_matrix
from sparse_jax.tree import leaf_paths
from sparse_jax.types import Masks, Params

Row = dict[str, Any]


def _totals(pruned: int, total: int) -> Row:
    return {
        "pruned": pruned,
        "total": total,
        "sparsity": pruned / total if total else 0.0,
    }


def sparsity_rows(masks: Masks) -> list[Row]:
    """One row per masked matrix: path, layer (None if not stacked), counts, sparsity.

    Example:
      >>> import jax.numpy as jnp
      >>> sparsity_rows({"up": {"kernel": jnp.array([[[True, False]]])}})
      [{'path': 'up/kernel', 'layer': 0, 'pruned': 1, 'total': 2, 'sparsity': 0.5}]
    """
    rows = []
    for path, mask in leaf_paths(masks).items():
        if mask is None:
            continue
        size = mask.shape[-2] * mask.shape[-1]
        kept = count_per_matrix(mask)
        for index in np.ndindex(kept.shape):
            # Axis 0 of a stacked kernel is the layer; a lone matrix has no such axis.
            layer = index[0] if index else None
            row = {"path": path, "layer": layer}
            rows.append(row | _totals(size - int(kept[index]), size))
    return rows


def sparsity_report(params: Params, masks: Masks) -> dict[str, Any]:
    """Sparsity per matrix, of the masked matrices together, and of all parameters.

    Returns:
      A plain dict: `matrices` (see `sparsity_rows`), `pruned_matrices` and `model`,
      the last two with `pruned`, `total` and `sparsity`.
    """
    rows = sparsity_rows(masks)
    pruned = sum(row["pruned"] for row in rows)
    parameters = sum(leaf.size for leaf in leaf_paths(params).values())
    return {
        "matrices": rows,
        "pruned_matrices": _totals(pruned, sum(row["total"] for row in rows)),
        "model": _totals(pruned, parameters),
    }
