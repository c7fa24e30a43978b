"""Integer grids of weight matrices: codes, scales and zero points.

    symmetric   w = scale * code,            code in [-(2^(b-1) - 1), 2^(b-1) - 1]
    asymmetric  w = scale * (code - zero),   code and zero in [0, 2^b - 1]

Zero lies on every grid, so that a pruned weight stays exactly zero. A scale is for
`group` consecutive inputs of one output; the last group of a row may have fewer.

Weights are [*L, out, in] in the solvers and [*L, in, out] in the params. `axis` says
where the inputs are, -1 or -2; scales have groups in their place, [*L, out, groups] or
[*L, groups, out].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

from sparse_jax.types import InputError

BITS = (2, 3, 4, 8)
_SMALLEST = 1e-15  # in place of a scale of zero
_ON_GRID = 1e-4  # of a code: nearer than that a weight is on the grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """What the codes of a matrix are.

    Attributes:
      bits: of a code: 2, 3, 4 or 8.
      group: inputs that share a scale; 0 = all of a row.
      symmetric: no zero points.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True

    def __post_init__(self):
        if self.bits not in BITS:
            raise InputError(f"grid.bits must be one of {BITS}, found {self.bits!r}")
        if not isinstance(self.group, int) or self.group < 0:
            raise InputError(
                "grid.group must be a number of inputs, or 0 for all of a row, found "
                f"{self.group!r}"
            )

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        if self.symmetric:
            return 1 - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @property
    def scale_dtype(self) -> jnp.dtype:
        """Of the values that scales may have: those that the packed types store."""
        by_row = self.bits == 8 and not self.group
        return jnp.dtype(jnp.float32 if by_row else jnp.bfloat16)

    def groups(self, n_in: int) -> int:
        """Scales of a row of `n_in` inputs."""
        return -(-n_in // (self.group or n_in))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of a matrix, or of several of the same shape.

    Attributes:
      config: what its codes are.
      scales: float32, [*L, out, groups] or [*L, groups, out], values of
        `config.scale_dtype`.
      zeros: integers as float32, of the same shape; None where symmetric.
    """

    config: GridConfig = dataclasses.field(metadata={"static": True})
    # Any: JAX rebuilds trees around what is no array.
    scales: Any
    zeros: Any = None


Grids = Mapping[tuple[str, int], Grid]
"""(leaf path, layer) -> the grid of that matrix [in, out], scales [groups, out].

Matrices without one are stored as floats.
"""


def to_codes(
    weights: Float[Array, "..."], grid: Grid, *, axis: int = -1
) -> Int8[Array, "..."]:
    """The nearest codes, ties to even; asymmetric ones less 2^(b-1), to fit int8.

    Args:
      weights: [*L, out, in], or [*L, in, out] with axis -2.
      grid: of the same layout.
      axis: where the inputs are.

    Example:
      >>> grid = Grid(config=GridConfig(bits=4, group=0), scales=jnp.array([[0.5]]))
      >>> to_codes(jnp.array([[1.0, 0.0, -9.0]]), grid).tolist()
      [[2, 0, -7]]
    """
    return (_codes(weights, grid, axis) - _offset(grid)).astype(jnp.int8)


def from_codes(
    codes: Int8[Array, "..."], grid: Grid, *, axis: int = -1
) -> Float[Array, "..."]:
    """The weights that codes stand for, float32; the inverse of `to_codes`."""
    scales, zeros = _expanded(grid, codes.shape[axis], axis)
    return scales * (codes.astype(jnp.float32) + _offset(grid) - zeros)


def round_to_grid(
    weights: Float[Array, "..."], grid: Grid, *, axis: int = -1
) -> Float[Array, "..."]:
    """Weights rounded to the nearest points of their grid; arguments as `to_codes`."""
    scales, zeros = _expanded(grid, weights.shape[axis], axis)
    return scales * (_codes(weights, grid, axis) - zeros)


def quantizer(grid: Grid) -> jax.tree_util.Partial:
    """Rounds column after column, for `solvers.solve`; grid of matrices [out, in]."""
    return jax.tree_util.Partial(_round_column, grid)


def _round_column(
    grid: Grid, values_O: Float[Array, " out"], index: Int[Array, ""]
) -> Float[Array, " out"]:
    group = index // grid.config.group if grid.config.group else 0

    def of_column(leaf_OG: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(leaf_OG, group, 1, axis=-1)

    return round_to_grid(values_O[:, None], jax.tree.map(of_column, grid))[:, 0]


def fake_quantize(
    weights: Float[Array, "..."], grid: Grid, *, axis: int = -2
) -> Float[Array, "..."]:
    """`round_to_grid` for training: gradients pass straight through every rounding.

        dw'/dw     = 1 inside of the grid's range, 0 outside
        dw'/dscale = code - zero - w / scale inside, code - zero outside
        dw'/dzero  = 0 inside, -scale outside

    Scales and zero points may have any value: they are rounded here to what can be
    stored, straight through as well, so that what trains is what is written.

    Source: LSQ, https://arxiv.org/abs/1902.08153; LSQ+,
    https://arxiv.org/abs/2004.09576

    Args:
      weights: [*L, in, out], or [*L, out, in] with axis -1.
      grid: of the same layout.
      axis: where the inputs are.

    Example:
      >>> grid = Grid(config=GridConfig(bits=4, group=0), scales=jnp.array([[0.5]]))
      >>> slope = jax.grad(lambda w: fake_quantize(w, grid).sum())
      >>> slope(jnp.array([[0.3], [9.0]])).tolist()
      [[1.0], [0.0]]
    """
    scales, zeros = _expanded(storable(grid), weights.shape[axis], axis)
    w, s, z = jax.lax.stop_gradient((weights, scales, zeros))
    low, high = grid.config.limits
    nearest = jnp.round(w / s) + z
    inside = (nearest >= low) & (nearest <= high)
    steps = jnp.clip(nearest, low, high) - z
    slope = jnp.where(inside, steps - w / s, steps)
    # Of weights that lie on the grid there is rounding noise, which Adam would take for
    # a gradient as good as any.
    slope = jnp.where(jnp.abs(slope) < _ON_GRID, 0.0, slope)
    return (
        s * steps
        + jnp.where(inside, weights - w, 0.0)
        + slope * (scales - s)
        + jnp.where(inside, 0.0, -s) * (zeros - z)
    )


def storable(grid: Grid) -> Grid:
    """A grid with its scales and zero points rounded, straight through."""

    def to_scale(scales: Array) -> Array:
        stored = jnp.maximum(scales, _SMALLEST).astype(grid.config.scale_dtype)
        return stored.astype(jnp.float32)

    zeros = grid.zeros
    if zeros is not None:
        low, high = grid.config.limits
        zeros = _straight_through(lambda z: jnp.clip(jnp.round(z), low, high), zeros)
    scales = _straight_through(to_scale, grid.scales)
    return dataclasses.replace(grid, scales=scales, zeros=zeros)


def storage_bits(
    config: GridConfig, n_in: int, density: float = 1.0, index_bits: float = 0.0
) -> float:
    """Bits per original weight: kept codes, where they are, scales and zero points.

    Scales have the 16 or 32 bits of their dtype, zero points the bits of a code; a
    ragged last group counts whole.

    Args:
      config: the grid.
      n_in: inputs of a row.
      density: fraction of weights that are kept.
      index_bits: per original weight, what says which are.

    Example:
      >>> storage_bits(GridConfig(bits=4, group=128), 4096)
      4.125
    """
    per_group = 8 * config.scale_dtype.itemsize
    per_group += 0 if config.symmetric else config.bits
    return config.bits * density + index_bits + per_group * config.groups(n_in) / n_in


def _codes(weights: Array, grid: Grid, axis: int) -> Array:
    """Codes as float32, asymmetric ones from 0."""
    scales, zeros = _expanded(grid, weights.shape[axis], axis)
    low, high = grid.config.limits
    divided = weights.astype(jnp.float32) / jnp.where(scales > 0, scales, 1.0)
    return jnp.clip(jnp.round(divided) + zeros, low, high)


def _offset(grid: Grid) -> int:
    return 0 if grid.config.symmetric else 2 ** (grid.config.bits - 1)


def _expanded(grid: Grid, n_in: int, axis: int) -> tuple[Array, Any]:
    """Scales and zero points of every input."""

    def expand(leaf: Array) -> Array:
        if leaf.shape[axis] == 1:
            return leaf
        wide = jnp.repeat(leaf, grid.config.group, axis=axis)
        return jax.lax.slice_in_dim(wide, 0, n_in, axis=wide.ndim + axis)

    zeros = 0.0 if grid.zeros is None else expand(grid.zeros)
    return expand(grid.scales), zeros


def _straight_through(function, x: Array) -> Array:
    # Exact however far the two are apart, as x + (function(x) - x) is not.
    return jax.lax.stop_gradient(function(x)) + (x - jax.lax.stop_gradient(x))
