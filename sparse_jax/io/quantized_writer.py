"""Weights on their grids, as the tensors of a file; see `compressed_tensors`."""

from typing import Any

import numpy as np

from sparse_jax.io import layout, words
from sparse_jax.io.names import Slot
from sparse_jax.io.quantized_plan import Stored, module_of
from sparse_jax.io.safetensors_file import DTYPES
from sparse_jax.quant import GridConfig
from sparse_jax.types import InputError

_ROUNDING = 4 * np.finfo(np.float32).eps  # of one product, and room for a fused one


def encode(
    stored: Stored,
    slot: Slot,
    weights_IO: Any,
    kept_IO: Any,
    scales_GO: Any,
    zeros_GO: Any,
) -> dict[str, np.ndarray]:
    """The tensors of one matrix, as `Stored.tensors` lists them.

    Args:
      stored: how it is written.
      slot: which matrix.
      weights_IO: its weights, on their grid.
      kept_IO: its mask, True = kept; None = dense.
      scales_GO: of their grid.
      zeros_GO: of their grid; None where it is symmetric.

    Raises:
      InputError: a weight is not on the grid, or a pruned one is not zero.
    """
    where = f"{slot.path} of layer {slot.layer}"
    config = stored.scheme.grid
    scales_OG = np.asarray(scales_GO, np.float32).T
    zeros_OG = None if zeros_GO is None else np.asarray(zeros_GO, np.float32).T
    w_OI = layout.transposed(np.asarray(weights_IO, np.float32))
    codes_OI = np.empty(w_OI.shape, np.int8)
    step = max(1, 2**20 // w_OI.shape[1])
    for start in range(0, len(w_OI), step):
        rows = slice(start, start + step)
        zeros = None if zeros_OG is None else zeros_OG[rows]
        codes = _codes(w_OI[rows], scales_OG[rows], zeros, config, where)
        if kept_IO is not None:
            kept_OI = np.asarray(kept_IO)[:, rows].T
            _check_zeros(codes, kept_OI, zeros, config, where)
        codes_OI[rows] = codes
    bits, scale_dtype = config.bits, DTYPES[stored.scale_dtype]
    arrays: dict[str, np.ndarray] = {"weight": codes_OI}
    if stored.scheme.packed:
        shape = np.array(codes_OI.shape, np.int64)
        arrays = {"weight_packed": words.pack(codes_OI, bits), "weight_shape": shape}
    arrays["weight_scale"] = scales_OG.astype(scale_dtype)
    if zeros_OG is not None:
        zeros = (zeros_OG - (1 << bits - 1)).astype(np.int8)
        packed = stored.scheme.packed and not stored.scheme.blocks
        arrays["weight_zero_point"] = words.pack(zeros.T, bits).T if packed else zeros
    if stored.input_scale is not None:
        arrays["input_scale"] = np.array([stored.input_scale], np.float32)
    return {f"{module_of(slot)}.{name}": array for name, array in arrays.items()}


def _codes(
    w_OI: np.ndarray,
    scales_OG: np.ndarray,
    zeros_OG: np.ndarray | None,
    config: GridConfig,
    where: str,
) -> np.ndarray:
    """Codes of some rows, as `quant.to_codes` gives them; checked."""
    width, n_in = config.group or w_OI.shape[1], w_OI.shape[1]
    scales_OI = np.repeat(scales_OG, width, axis=1)[:, :n_in]
    middle = 1 << config.bits - 1
    zeros_OI = np.float32(0)
    if zeros_OG is not None:
        zeros_OI = np.repeat(zeros_OG, width, axis=1)[:, :n_in] - np.float32(middle)
    exact_OI = np.rint(w_OI / np.where(scales_OI > 0, scales_OI, 1)) + zeros_OI
    # A symmetric code of others may be -2^(b-1), one below what grids are fitted to.
    codes_OI = np.clip(np.nan_to_num(exact_OI), -middle, middle - 1)
    found_OI = scales_OI * (codes_OI - zeros_OI)
    off = ~(np.abs(w_OI - found_OI) <= _ROUNDING * np.abs(found_OI))
    if off.any():
        worst = w_OI[off][0]
        raise InputError(
            f"{where}: {int(off.sum())} weights are not on their grid of {config.bits} "
            f"bits, the first is {worst:.6g} where the grid has "
            f"{found_OI[off][0]:.6g}; round them (quant.round_to_grid)"
        )
    return codes_OI.astype(np.int8)


def _check_zeros(
    codes_OI: np.ndarray,
    kept_OI: np.ndarray,
    zeros_OG: np.ndarray | None,
    config: GridConfig,
    where: str,
) -> None:
    """Raises InputError where a pruned weight is not zero."""
    zero_OI: Any = 0
    if zeros_OG is not None:
        width = config.group or codes_OI.shape[1]
        zero_OI = np.repeat(zeros_OG, width, axis=1)[:, : codes_OI.shape[1]]
        zero_OI = zero_OI - (1 << config.bits - 1)
    wrong = int(np.count_nonzero((codes_OI != zero_OI) & ~kept_OI))
    if wrong:
        raise InputError(
            f"{where}: {wrong} pruned weights are not zero; apply the masks before "
            "saving (sparsity.masks.apply)"
        )
