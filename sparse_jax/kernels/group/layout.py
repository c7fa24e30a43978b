"""Where everything lies in the arrays of the group types; numpy, on the host.

A *panel* is 16 outputs, a *superblock* up to 256 neighbouring groups (4096 inputs), so
that the id of a group in it is one byte. In every (panel, superblock) the 16 outputs
are sorted by how many groups they keep there; four neighbours in that order are a
*quad* and are padded to the same even count. A *tile* is two groups of each of the four
outputs of a quad, 64 bytes of codes:

    slot 4 e + r                 group e of the tile, output r of the quad
    codes[tile, 32 e + 16 (r % 2) + j]
                                 input j of that group; low nibble r < 2, high r >= 2
    zeros[tile, r]               low nibble e = 0, high e = 1

The tiles of a quad follow each other, the quads of a superblock, the superblocks of a
panel, and the panels.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sparse_jax.kernels.format import PANEL, Arrays, to_panels
from sparse_jax.types import InputError

GROUP = 16
MAX_GROUPS = 256
"""Groups in a superblock at most: ids are one byte."""
MIDDLE = 8
"""The zero point of every group where the leaf has no array of zeros."""


class Superblocks(NamedTuple):
    """How the groups of a row are cut: `count` runs of `width`, the last may be short.

    Example:
      >>> superblocks(4096), superblocks(11008)
      (Superblocks(count=1, width=256), Superblocks(count=3, width=230))
    """

    count: int
    width: int


def superblocks(n_in: int) -> Superblocks:
    """Cuts n_in inputs into equally wide superblocks of at most 4096."""
    groups = n_in // GROUP
    count = -(-groups // MAX_GROUPS)
    return Superblocks(count, -(-groups // count))


class Kept(NamedTuple):
    """The kept groups of a matrix, ordered by output, then by input.

    Attributes:
      rows: output of each, int64 [N].
      groups: group of inputs of each, int64 [N].
      codes: uint8 [N, 16], 0 to 15; the weight is scale * (code - zero).
      scales: float32 [N], each of them a bfloat16; or uint8 [N], times `units`.
      zeros: uint8 [N], 0 to 15, or None where all are 8.
      units: float32 [out], what an integer scale of a row is multiplied by.
    """

    rows: np.ndarray
    groups: np.ndarray
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    units: np.ndarray | None = None


def _order_quads(rows, blocks, shape, n_blocks):
    """The order of the outputs in each block, and the tiles of each quad.

    Returns order [panels, superblocks, 16] and counts [panels, superblocks, 4].
    """
    panels = -(-shape[0] // PANEL)
    kept = np.bincount(rows * n_blocks + blocks, minlength=panels * PANEL * n_blocks)
    kept = kept.reshape(panels, PANEL, n_blocks).swapaxes(1, 2)
    order = np.argsort(kept, axis=-1, kind="stable")
    longest = np.take_along_axis(kept, order, -1)[..., 3::4]
    return order, (longest + 1) // 2


def encode(kept: Kept, shape: tuple[int, int]) -> Arrays:
    """The arrays of a leaf that holds these groups; see the module's docstring."""
    n_blocks, width = superblocks(shape[1])
    blocks = kept.groups // width
    order, counts = _order_quads(kept.rows, blocks, shape, n_blocks)
    inverse = np.argsort(order, axis=-1)
    ends = np.cumsum(counts.ravel())
    tiles = int(ends[-1])
    if tiles >= 2**32:
        raise InputError(
            f"a matrix of groups may hold 2^32 tiles of 8 groups, found {tiles}; "
            "split it"
        )
    # Rank of each kept group among those of its output in its superblock.
    key = kept.rows * n_blocks + blocks
    rank = np.arange(len(key)) - np.searchsorted(key, key)
    place = inverse[kept.rows // PANEL, blocks, kept.rows % PANEL]
    quad = (kept.rows // PANEL * n_blocks + blocks) * 4 + place // 4
    tile = (ends - counts.ravel())[quad] + rank // 2
    slot = 4 * (rank % 2) + place % 4

    # Padding is a group of scale 0: the last of its superblock, as ids ascend.
    last = np.full(n_blocks, width - 1)
    last[-1] = shape[1] // GROUP - width * (n_blocks - 1) - 1
    block_of_tile = np.repeat(np.arange(counts.size) // 4 % n_blocks, counts.ravel())
    ids = np.repeat(last[block_of_tile].astype(np.uint8)[:, None], 8, axis=1)
    ids[tile, slot] = kept.groups - blocks * width
    dtype = ml_dtypes.bfloat16 if kept.units is None else np.uint8
    scales = np.zeros((tiles, 8), dtype)
    scales[tile, slot] = kept.scales
    codes = np.full((tiles, 8, GROUP), MIDDLE, np.uint8)
    codes[tile, slot] = kept.codes
    codes = codes.reshape(tiles, 2, 2, 2, GROUP)  # e, r // 2, r % 2, input
    arrays = {
        "codes": (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(tiles, 64),
        "ids": ids,
        "scales": scales,
        "counts": counts.astype(np.uint8),
        "order": order.astype(np.uint8),
        "starts": np.concatenate([[0], ends[4 * n_blocks - 1 :: 4 * n_blocks]]).astype(
            np.uint32
        ),
        "excess": _excess(kept, order.shape[0]),
    }
    if kept.units is not None:
        arrays["row_scales"] = to_panels(kept.units)
    if kept.zeros is not None:
        zeros = np.full((tiles, 8), MIDDLE, np.uint8)
        zeros[tile, slot] = kept.zeros
        arrays["zeros"] = zeros[:, :4] | zeros[:, 4:] << 4
    return arrays


def _excess(kept: Kept, panels: int) -> np.ndarray:
    """128 sum(w) of each output: what activations + 128 add to its product."""
    zeros = MIDDLE if kept.zeros is None else kept.zeros.astype(np.int64)
    scales = kept.scales
    if kept.units is not None:
        scales = scales * kept.units[kept.rows].astype(np.float64)
    sums = scales * (kept.codes.sum(-1, dtype=np.int64) - GROUP * zeros)
    sums = np.bincount(kept.rows, weights=sums, minlength=panels * PANEL)
    return (128 * sums).astype(np.float32).reshape(panels, PANEL)


class Slots(NamedTuple):
    """Every slot of every tile, padding (scale 0) included; see `Kept`."""

    rows: Any  # [tiles, 8]
    groups: Any  # [tiles, 8]
    codes: Any  # [tiles, 8, 16]
    scales: Any  # [tiles, 8], in float32, as they are stored
    zeros: Any  # [tiles, 8], or the zero point of all


def decode(arrays: Arrays, shape: tuple[int, int], xp: Any) -> Slots:
    """The inverse of `encode` but for padding; `xp` is numpy or jax.numpy."""
    n_blocks, width = superblocks(shape[1])
    counts = arrays["counts"].reshape(-1).astype(xp.int32)
    tiles = arrays["ids"].shape[0]
    # jax.numpy needs to be told the length, which is static there.
    length = {} if xp is np else {"total_repeat_length": tiles}
    quad = xp.repeat(xp.arange(counts.size), counts, **length)[:, None]
    block = quad // 4
    order = arrays["order"].reshape(-1).astype(xp.int32)
    places = order[quad * 4 + xp.arange(8) % 4]
    codes = arrays["codes"].reshape(-1, 2, 1, 2, GROUP)
    codes = xp.concatenate([codes & 15, codes >> 4], axis=2)
    zeros = arrays.get("zeros", MIDDLE)
    if "zeros" in arrays:
        zeros = xp.concatenate([zeros & 15, zeros >> 4], axis=1)
    return Slots(
        rows=block // n_blocks * PANEL + places,
        groups=block % n_blocks * width + arrays["ids"].astype(xp.int32),
        codes=codes.reshape(-1, 8, GROUP),
        scales=arrays["scales"].astype(xp.float32),
        zeros=zeros,
    )
