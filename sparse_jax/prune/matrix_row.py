"""What the report says of one matrix: its zeros, its error and its bits."""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool

from sparse_jax import quant
from sparse_jax.prune.config import PruneConfig
from sparse_jax.prune.solve_rounded import Rounded
from sparse_jax.sparsity import NM, Group, Pattern, Unstructured
from sparse_jax.sparsity.index_bits import index_bits
from sparse_jax.sparsity.masks import count_per_matrix

Row = dict[str, Any]

_SIZES = (16, 8, 4)  # of groups of inputs that zeros are looked for in


def matrix_row(
    path: str,
    result: Rounded,
    pattern: Pattern | None,
    found: Bool[Array, "out in"] | None,
    config: PruneConfig,
) -> Row:
    """A row without its layer and seconds; see `prune`.

    Args:
      path: in the whole model.
      result: of the solve, with what corrects it.
      pattern: that it was pruned to now, if it was.
      found: the mask that it had before, if it had one.
      config: what was asked for.
    """
    solution = result.solution
    calibrated = solution.hessian is not None
    mask = solution.mask if pattern is not None else found
    size = solution.weights.size
    kept = size if mask is None else int(count_per_matrix(mask))
    row = {
        "path": path,
        "pattern": str(pattern or ("dense" if mask is None else "found")),
        "sparsity": (size - kept) / size,
        "relative_error": solution.relative_error if calibrated else None,
        "damping": None if solution.damping is None else float(solution.damping),
    }
    if config.quantize is None:
        return row
    index = 0.0
    if mask is not None:
        index = index_bits(pattern or found_pattern(np.asarray(mask)))
    n_out, n_in = solution.weights.shape
    extra = 0.0
    if result.outliers is not None:
        count = config.quantize.outliers.count(n_in, n_out)  # pyrefly: ignore
        extra += quant.OUTLIER_BITS * count
    if (low_rank := config.quantize.low_rank) is not None:
        rank = low_rank.size(n_in, n_out)
        extra += quant.low_rank_bits(rank, n_in, n_out, low_rank.grid)
    bits = None
    if result.grid is not None:
        grid = result.grid.config
        options = {"density": kept / size, "index_bits": index}
        bits = quant.storage_bits(grid, n_in, **options) + extra / size
    return row | {
        "bits": bits,
        "extra_bits": extra / size,
        "index_bits": index,
        "left_out": result.left_out,
    }


def found_pattern(mask: Bool[np.ndarray, "out in"]) -> Pattern | None:
    """The pattern of the zeros of a mask that takes the fewest bits to say.

    Whole groups of inputs, or N of every M with the same N everywhere, or unstructured;
    None where there are no zeros.

    Example:
      >>> str(found_pattern(np.array([[True, False, False, True] * 4])))
      '2:4'
    """
    if mask.all():
        return None
    sparsity = min(float(1 - mask.mean()), np.nextafter(1, 0))  # 1 is not one
    for size in (size for size in _SIZES if mask.shape[1] % size == 0):
        kept_OG = mask.reshape(len(mask), -1, size).sum(-1)
        if ((kept_OG == 0) | (kept_OG == size)).all():
            return Group(size, sparsity)
    for size in (size for size in _SIZES[::-1] if mask.shape[1] % size == 0):
        kept_OG = mask.reshape(len(mask), -1, size).sum(-1)
        if kept_OG.min() == kept_OG.max():
            return NM(int(kept_OG.min()), size)
    return Unstructured(sparsity)
