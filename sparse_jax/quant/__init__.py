"""Weights on integer grids: fitting a grid, rounding to it, training through it."""

from sparse_jax.quant.activations import Activations
from sparse_jax.quant.fit import fit, search
from sparse_jax.quant.grid import (
    Grid,
    GridConfig,
    Grids,
    fake_quantize,
    from_codes,
    quantizer,
    round_to_grid,
    storage_bits,
    to_codes,
)
from sparse_jax.quant.inputs import round_inputs, round_layer_inputs
from sparse_jax.quant.low_rank import low_rank, low_rank_bits
from sparse_jax.quant.outliers import (
    OUTLIER_BITS,
    choose_outliers,
    quantizer_with_outliers,
    take_outliers,
)
from sparse_jax.quant.smooth import awq_scales, smooth_scales

__all__ = [
    "OUTLIER_BITS",
    "Activations",
    "Grid",
    "GridConfig",
    "Grids",
    "awq_scales",
    "choose_outliers",
    "fake_quantize",
    "fit",
    "from_codes",
    "low_rank",
    "low_rank_bits",
    "quantizer",
    "quantizer_with_outliers",
    "round_inputs",
    "round_layer_inputs",
    "round_to_grid",
    "search",
    "smooth_scales",
    "storage_bits",
    "take_outliers",
    "to_codes",
]
