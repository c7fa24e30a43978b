"""Groups of 16 inputs kept or dropped whole, in 4 bits: GQSA's storage."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sparse_jax.kernels.format import PANEL, Arrays, ArraySpec, Format, panels
from sparse_jax.kernels.group import layout
from sparse_jax.kernels.group.layout import GROUP, MIDDLE, Kept
from sparse_jax.kernels.quantize import quantize_activations, round_asymmetric
from sparse_jax.types import InputError

NAME = "group_int4"
_CHUNK = 1 << 22
"""Weights that are rounded at a time, so that packing needs little memory."""


def kept_groups(mask_OI: np.ndarray) -> np.ndarray:
    """Which groups hold a kept weight, [out, groups].

    A kept weight may be zero; a mask that prunes more than one of 16 weights of the
    kept groups is another pattern, for which this type would be a waste.
    """
    counts_OG = mask_OI.reshape(mask_OI.shape[0], -1, GROUP).sum(axis=2)
    kept_OG = counts_OG > 0
    cut_OG = kept_OG & (counts_OG < GROUP)
    if (GROUP - counts_OG)[cut_OG].sum() > kept_OG.sum():
        row, group = np.argwhere(cut_OG)[0]
        raise InputError(
            f"row {row}, inputs {GROUP * group} to {GROUP * group + GROUP - 1} keep "
            f"{counts_OG[row, group]} of 16, expected all or none"
        )
    return kept_OG


def divide(w_NK: np.ndarray, scales_N: np.ndarray) -> np.ndarray:
    """Weights over the scales of their groups, rounded half to even."""
    return np.rint(w_NK / np.where(scales_N > 0, scales_N, 1)[:, None])


def _round_symmetric(w_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales_N = (np.abs(w_NK).max(axis=1, initial=0.0) / 7).astype(ml_dtypes.bfloat16)
    scales_N = scales_N.astype(np.float32)
    codes_NK = np.clip(divide(w_NK, scales_N), -7, 7)
    return codes_NK.astype(np.int8), scales_N


def kept_weights(w_OI: np.ndarray, mask_OI: np.ndarray, kept_OG: np.ndarray):
    """(rows, weights [N, 16]) of the kept groups, some rows at a time."""
    n_out, n_in = w_OI.shape
    step = max(1, _CHUNK // n_in)
    for start in range(0, n_out, step):
        rows = slice(start, start + step)
        w_OGK = np.where(mask_OI[rows], w_OI[rows], 0).reshape(-1, n_in // GROUP, GROUP)
        yield rows, w_OGK[kept_OG[rows]]


def pack_arrays(
    w_OI: np.ndarray, mask_OI: np.ndarray, zero_point: bool = False
) -> Arrays:
    """The arrays of a rounded matrix, see `pack_groups`."""
    kept_OG = kept_groups(mask_OI)
    rounded = partial(round_asymmetric, bits=4) if zero_point else _round_symmetric
    parts = [rounded(w_NK) for _, w_NK in kept_weights(w_OI, mask_OI, kept_OG)]
    return encode_groups(kept_OG, *map(np.concatenate, zip(*parts, strict=True)))


def encode_groups(
    kept_OG: np.ndarray,
    codes_NK: np.ndarray,
    scales_N: np.ndarray,
    zeros_N: np.ndarray | None = None,
    units_O: np.ndarray | None = None,
) -> Arrays:
    """The arrays that hold given codes, see `from_codes`."""
    rows, groups = np.nonzero(kept_OG)
    if zeros_N is None:
        codes_NK = codes_NK + MIDDLE
    kept = Kept(rows, groups, codes_NK.astype(np.uint8), scales_N, zeros_N, units_O)
    return layout.encode(kept, (kept_OG.shape[0], kept_OG.shape[1] * GROUP))


def _weights(arrays: Arrays, shape: tuple[int, int], xp: Any) -> tuple[Any, ...]:
    """Rows, groups [tiles, 8] and weights [tiles, 8, 16] of all slots."""
    slots = layout.decode(arrays, shape, xp)
    zeros = slots.zeros
    if "zeros" in arrays:
        zeros = zeros[..., None].astype(xp.float32)
    weights = slots.scales[..., None] * (slots.codes.astype(xp.float32) - zeros)
    if "row_scales" in arrays:
        weights = weights * arrays["row_scales"].reshape(-1)[slots.rows][..., None]
    return slots.rows, slots.groups, weights


def _blank(shape: tuple[int, int]) -> tuple[int, int, int]:
    return panels(shape[0]) * PANEL, shape[1] // GROUP, GROUP


def unpack(arrays: Arrays, shape: tuple[int, int]) -> np.ndarray:
    """The weights, [out, in]."""
    rows, groups, weights = _weights(arrays, shape, np)
    held = np.asarray(arrays["scales"]) != 0
    w_OGK = np.zeros(_blank(shape), np.float32)
    w_OGK[rows[held], groups[held]] = weights[held]
    return w_OGK.reshape(-1, shape[1])[: shape[0]]


def dot(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    """The reference: codes of activations times the weights in float32."""
    rows, groups, weights = _weights(arrays, shape, jnp)
    w_OGK = jnp.zeros(_blank(shape), jnp.float32).at[rows, groups].add(weights)
    w_OI = w_OGK.reshape(-1, shape[1])[: shape[0]]
    codes_BI, scale_B1 = quantize_activations(x_BI)
    return codes_BI.astype(jnp.float32) @ w_OI.T * scale_B1


def specs(shape: tuple[int, int], *, integers: bool) -> dict[str, ArraySpec]:
    """Its arrays; with `integers` scales are those of group_int4_u8."""
    blocks = (panels(shape[0]), layout.superblocks(shape[1]).count)
    per_row = ArraySpec(dtype="float32", shape=(blocks[0], PANEL))
    return {
        "codes": ArraySpec(dtype="uint8", shape=(None, 64)),
        "ids": ArraySpec(dtype="uint8", shape=(None, 8)),
        "scales": ArraySpec(dtype="uint8" if integers else "bfloat16", shape=(None, 8)),
        "counts": ArraySpec(dtype="uint8", shape=(*blocks, 4)),
        "order": ArraySpec(dtype="uint8", shape=(*blocks, PANEL)),
        "starts": ArraySpec(dtype="uint32", shape=(blocks[0] + 1,)),
        "excess": per_row,
        **({"row_scales": per_row} if integers else {}),
        "zeros": ArraySpec(dtype="uint8", shape=(None, 4), optional=True),
    }


def expected_bits(n_out: int, n_in: int, density: float, *, scale_bits: int) -> float:
    """72 bits and a scale for each group, with padding and tables, for a uniform mask.

    Sorting 16 counts leaves the fullest of four neighbours 0.374 standard deviations
    above the mean (order statistics of the normal distribution), rounded up to pairs.
    """
    n_blocks, width = layout.superblocks(n_in)
    spread = (width * density * (1 - density)) ** 0.5
    padded = density * width + (0.374 * spread + 0.5 if 0 < density < 1 else 0)
    tables = 20 * 8 / PANEL * n_blocks + 32 + 32 / PANEL
    return (
        (72 + scale_bits) * min(padded, width + width % 2) * n_blocks + tables
    ) / n_in


GROUP_INT4 = Format(
    name=NAME,
    dtype="int4",
    lossless=False,
    summary="groups of 16 inputs, int4, a bfloat16 scale per group",
    input_multiple=GROUP,
    pack=pack_arrays,
    panel_wise=False,
    unpack=unpack,
    reference=dot,
    array_specs=partial(specs, integers=False),
    expected_bits=partial(expected_bits, scale_bits=16),
)
"""w = scale (code - zero) in kept groups of 16 inputs, 0 in the others.

The code has 4 bits, the scale is a bfloat16, the zero point 8 or, with the optional
array `zeros`, 4 bits of each group; `group/layout.py` says where everything lies.
`pack` rounds to the symmetric form (max|w| / 7), `pack_groups` to either; `from_codes`
takes over a quantised matrix. A kept group takes 64 bits of codes, 8 of id and 16 of
scale (4 of zero point): 5.5 bits for each kept weight, and about 3, 4 and 6 % of
padding at 50, 70 and 80 % sparsity and 4096 inputs.

Activations are int8, see `quantize_activations`. Natively they are multiplied as
unsigned bytes, code + 128, in exact integers inside a group; `excess`, 128 sum(w) of
each output, takes the 128 away again.
"""
