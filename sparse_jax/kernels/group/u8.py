"""group_int4 with integer scales of its groups, times one float32 of each row."""

from functools import partial

import numpy as np

from sparse_jax.kernels.format import Arrays, Format
from sparse_jax.kernels.group import int4
from sparse_jax.kernels.group.layout import GROUP

NAME = "group_int4_u8"


def to_integers(
    scales_N: np.ndarray, rows_N: np.ndarray, n_out: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scales of groups rounded to integers times the 255th part of their row's largest.

    A scale above 0 stays so.

    Args:
      scales_N: of the groups.
      rows_N: the row of each.
      n_out: rows.

    Returns:
      uint8 [N], and float32 [out].

    Example:
      >>> scales, units = to_integers(np.array([51.0, 0.8]), np.array([0, 0]), 1)
      >>> scales.tolist(), units.round(3).tolist()
      ([255, 4], [0.20000000298023224])
    """
    top_O = np.zeros(n_out, np.float32)
    np.maximum.at(top_O, rows_N, scales_N.astype(np.float32))
    units_O = top_O / np.float32(255)
    divisors_N = np.where(units_O > 0, units_O, 1)[rows_N]
    least_N = (scales_N > 0).astype(np.float32)
    integers_N = np.clip(np.rint(scales_N / divisors_N), least_N, 255)
    return integers_N.astype(np.uint8), units_O


def find_integers(scales_OG: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Scales as integers times a power of two of each row; None if they are no such.

    Args:
      scales_OG: float32, each of them a bfloat16 and none negative.

    Returns:
      uint8 [out, groups], and float32 [out].

    Example:
      >>> integers, units = find_integers(np.array([[0.75, 1.0, 0.0]], np.float32))
      >>> integers.tolist(), units.tolist()
      ([[3, 4, 0]], [0.25])
      >>> find_integers(np.array([[1.0, 1 / 512]], np.float32)) is None
      True
    """
    fractions_OG, exponents_OG = np.frexp(scales_OG)
    digits_OG = (fractions_OG * 256).astype(np.int64)
    last_OG = np.ldexp((digits_OG & -digits_OG).astype(np.float32), exponents_OG - 8)
    last_OG = np.where(scales_OG > 0, last_OG, np.inf)
    units_O = last_OG.min(axis=1, initial=np.inf)
    units_O = np.where(np.isinf(units_O), 1, units_O).astype(np.float32)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        integers_OG = scales_OG / units_O[:, None]
    if not ((integers_OG >= 0) & (integers_OG <= 255)).all():
        return None
    return integers_OG.astype(np.uint8), units_O


def _pack(w_OI: np.ndarray, mask_OI: np.ndarray) -> Arrays:
    kept_OG = int4.kept_groups(mask_OI)
    parts = []
    for rows, w_NK in int4.kept_weights(w_OI, mask_OI, kept_OG):
        exact_N = np.abs(w_NK).max(axis=1, initial=0.0) / 7
        rows_N = np.nonzero(kept_OG[rows])[0]
        integers_N, units_O = to_integers(exact_N, rows_N, len(kept_OG[rows]))
        codes_NK = int4.divide(w_NK, integers_N * units_O[rows_N])
        parts.append((np.clip(codes_NK, -7, 7).astype(np.int8), integers_N, units_O))
    codes_NK, integers_N, units_O = map(np.concatenate, zip(*parts, strict=True))
    return int4.encode_groups(kept_OG, codes_NK, integers_N, units_O=units_O)


GROUP_INT4_U8 = Format(
    name=NAME,
    dtype="int4",
    lossless=False,
    summary="groups of 16 inputs, int4, an 8-bit scale per group, one per row",
    input_multiple=GROUP,
    pack=_pack,
    panel_wise=False,
    unpack=int4.unpack,
    reference=int4.dot,
    array_specs=partial(int4.specs, integers=True),
    expected_bits=lambda n_out, n_in, density: (
        int4.expected_bits(n_out, n_in, density, scale_bits=8) + 32 / n_in
    ),
)
"""w = row scale * scale (code - zero) in kept groups of 16 inputs, 0 in the others.

As group_int4, but `scales` are uint8, and `row_scales` float32 [panels, 16] lies before
the optional `zeros`. A kept group takes 80 bits where group_int4 takes 88: 5 bits for
each kept weight. `pack` rounds symmetrically, scale = max|w| / 7 of a group to the
nearest of 255 multiples of the 255th part of its row's largest; `from_codes` takes over
what has such scales.

Natively the products of all groups of a superblock are added up as integers.
"""
