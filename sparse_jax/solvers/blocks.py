"""Working through the columns of a matrix from left to right in large products.

Before its turn comes, a block of columns is brought up to date from all those before
it. That is done for ever smaller blocks: first a whole tile from the tiles before it,
then each quarter of the tile from the quarters before it, and so on down to a block.
Every product is between equal widths, so that no work is spent on the other triangle,
and most of it is done at the largest width. All of it is loops: the compiled program is
as long for many columns as for few.
"""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

_WIDEST = 512  # columns of a tile: wide enough that products run at full speed
_RADIX = 4  # parts of a block

matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

Carry = TypeVar("Carry")
Index = jax.Array | int


def tile_width(n_in: int, block: int) -> int:
    """Widest `block * 2**k` up to 512 that pads `n_in` columns by at most 1/64.

    Example:
      >>> tile_width(4096, 32), tile_width(11008, 32), tile_width(100, 64)
      (512, 256, 64)
    """
    width = block
    while 2 * width <= _WIDEST and -n_in % (2 * width) * 64 <= n_in:
        width *= 2
    return width


def largest_divisor(n: int, most: int) -> int:
    """Returns the largest divisor of `n` that is at most `most`.

    Example:
      >>> largest_divisor(11008, 1024)
      688
    """
    return max(part for part in range(1, min(n, most) + 1) if n % part == 0)


def padded_columns(n_in: int, block: int) -> int:
    """Returns `n_in`, rounded up to a multiple of the tile."""
    tile = tile_width(n_in, block)
    return ceil(n_in / tile) * tile


def rows(array: Shaped[Array, "P *rest"], start: Index, size: int) -> Array:
    """Returns `array[start : start + size]`."""
    return lax.dynamic_slice_in_dim(array, start, size, allow_negative_indices=False)


def square(array: Shaped[Array, "P Q"], start: tuple[Index, Index], size: int) -> Array:
    """Returns `size` rows and columns from `start` on."""
    sizes = (size, size)
    return lax.dynamic_slice(array, start, sizes, allow_negative_indices=False)


def place(
    array: Shaped[Array, "P *rest"], part: Shaped[Array, "S *rest"], start: Index
) -> Array:
    """Returns `array` with `array[start : start + len(part)]` replaced."""
    return lax.dynamic_update_slice_in_dim(
        array, part, start, axis=0, allow_negative_indices=False
    )


def sweep(
    leaf: Callable[[jax.Array, Carry], Carry],
    absorb: Callable[[jax.Array, jax.Array, int, Carry], Carry],
    n_columns: int,
    tile: int,
    block: int,
    carry: Carry,
) -> Carry:
    """Visits blocks from left to right, each brought up to date from those before it.

    Args:
      leaf: (start, carry) -> carry, for the finished block [start, start + block).
      absorb: (start, source, width, carry) -> carry, brings [start, start + width) up
        to date with the finished columns [source, source + width).
      n_columns: a multiple of `tile`.
      tile: `block * 2**k`.
      block: columns of a leaf.
      carry: what is passed through.
    """

    def visit(first, n_parts, width, carry):
        def part(i, carry):
            start = first + i * width

            def absorb_part(j, carry):
                return absorb(start, first + j * width, width, carry)

            carry = lax.fori_loop(0, i, absorb_part, carry)
            if width == block:
                return leaf(start, carry)
            part_width = max(width // _RADIX, block)
            return visit(start, width // part_width, part_width, carry)

        return lax.fori_loop(0, n_parts, part, carry)

    return visit(0, n_columns // tile, tile, carry)
