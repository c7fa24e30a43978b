"""The one product with a packed matrix, native or in plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sparse_jax.kernels import native
from sparse_jax.kernels.format import PANEL
from sparse_jax.kernels.packed import Packed
from sparse_jax.kernels.registry import find_format
from sparse_jax.types import InputError

IMPLEMENTATIONS = ("native", "reference", *native.ISAS)
"""Names for `implementation`: an instruction set is the native kernel of that set."""


def dot(
    x: Float[Array, "*B in"],
    leaf: Packed,
    *,
    rows: Bool[Array | np.ndarray, " out_panels"] | None = None,
    cols: Bool[Array | np.ndarray, " in_panels"] | None = None,
    implementation: str | None = None,
) -> Float[Array, "*B out"]:
    """`x @ w.T` in float32 for a packed matrix w [out, in].

    Only active panels of 16 outputs and of 16 inputs are worked on: outputs of inactive
    panels are 0, inputs of inactive panels count as 0.

    Args:
      x: activations, float32. The quantised formats round them to int8, see
        `quantize_activations`.
      leaf: the matrix.
      rows: active output panels, [ceil(out / 16)]; None = all.
      cols: active input panels, [ceil(in / 16)]; None = all.
      implementation: "native", "reference" (plain JAX), or the native kernel of one
        instruction set, "portable", "avx2" or "avx512". None is native where it is
        built; where it is not, one line says so.

    Raises:
      InputError: x, rows or cols do not fit the matrix, or the implementation is
        unknown or not available.

    Example:
      >>> import numpy as np
      >>> from sparse_jax.kernels import pack
      >>> leaf = pack("dense_float32", np.ones((3, 5), np.float32))
      >>> dot(jnp.ones((2, 5)), leaf).tolist()
      [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]
    """
    _check(x, leaf, rows, cols)
    n_out, n_in = leaf.shape
    x_BI = x.reshape(-1, n_in).astype(jnp.float32)
    if implementation is None:
        implementation = "native" if native.available() else "reference"
    if implementation == "reference":
        y_BO = _reference(x_BI, leaf, rows, cols)
    else:
        y_BO = _native(x_BI, leaf, rows, cols, implementation)
    return y_BO.reshape(*x.shape[:-1], n_out)


def _check(x: Any, leaf: Packed, rows: Any, cols: Any) -> None:
    n_out, n_in = leaf.shape
    if x.ndim < 1 or x.shape[-1] != n_in:
        raise InputError(
            f"dot: expected activations with {n_in} inputs, found shape {x.shape}"
        )
    for name, panels, size in (("rows", rows, n_out), ("cols", cols, n_in)):
        expected = -(-size // PANEL)
        if panels is not None and panels.shape != (expected,):
            raise InputError(
                f"dot: {name} must hold one bool for each of {expected} panels of "
                f"{PANEL}, found shape {panels.shape}"
            )


def _reference(x_BI: jax.Array, leaf: Packed, rows: Any, cols: Any) -> jax.Array:
    n_out, n_in = leaf.shape
    if cols is not None:
        x_BI = jnp.where(jnp.repeat(cols, PANEL)[:n_in], x_BI, 0.0)
    arrays = {name: jnp.asarray(array) for name, array in leaf.arrays.items()}
    y_BO = find_format(leaf.format).reference(x_BI, arrays, leaf.shape)
    if rows is not None:
        y_BO = jnp.where(jnp.repeat(rows, PANEL)[:n_out], y_BO, 0.0)
    return y_BO


def _native(
    x_BI: jax.Array,
    leaf: Packed,
    rows: Any,
    cols: Any,
    implementation: str,
) -> jax.Array:
    if implementation not in IMPLEMENTATIONS:
        raise InputError(
            f"dot: unknown implementation {implementation!r}; expected one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if not native.available():
        raise InputError(
            f"dot: implementation {implementation!r} needs the native kernels, which "
            "are not installed; install a C++17 compiler and sparse_jax again"
        )
    if implementation == "native":
        native.isa()  # a wrong SPARSE_JAX_ISA is one sentence
        implementation = ""
    elif implementation not in native.supported_isas():
        raise InputError(
            f"dot: this CPU has no {implementation}; it has "
            f"{', '.join(native.supported_isas())}"
        )
    specs = find_format(leaf.format).array_specs(leaf.shape)
    arrays = tuple(
        jnp.asarray(leaf.arrays[name]) for name in specs if name in leaf.arrays
    )
    rows, cols = (None if p is None else jnp.asarray(p) for p in (rows, cols))
    return native.dot(
        x_BI, leaf.format, leaf.shape[0], arrays, rows, cols, implementation
    )
