"""Weights on integer grids: fitting a grid, rounding to it, training through it."""

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

__all__ = [
    "Grid",
    "GridConfig",
    "Grids",
    "fake_quantize",
    "fit",
    "from_codes",
    "quantizer",
    "round_to_grid",
    "search",
    "storage_bits",
    "to_codes",
]
