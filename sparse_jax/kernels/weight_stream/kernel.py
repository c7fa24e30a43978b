"""The three products of a layer on a grid of elements, by the Pallas kernel.

Arrays are those of a layer; how they spread over the elements is `costs`' affair.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sparse_jax.kernels.weight_stream.costs import Costs, slice_bounds
from sparse_jax.kernels.weight_stream.pallas import stream_product
from sparse_jax.kernels.weight_stream.stream import Stream, encode
from sparse_jax.types import InputError

_LANES = 128
"""Tokens of an element are padded to the width of a TPU register."""

_SLOTS = 64
"""Least slots for the ends of rows, so that few limits need a kernel of their own."""


def forward(
    x_TI: Float[np.ndarray, "T _"],
    w_OI: Float[np.ndarray, "O I"],
    mask_OI: Bool[np.ndarray, "_ _"],
    *,
    columns: int,
    costs: Sequence[Costs],
) -> tuple[Float[np.ndarray, "T O"], Int[np.ndarray, "R C 4"]]:
    """Y = X W^T over the kept weights, and what every element did meanwhile.

    Args:
      x_TI: activations.
      w_OI: weights.
      mask_OI: True = kept, and sent.
      columns: C, elements of a PE row.
      costs: of an element of each PE row; their number is R.

    Returns:
      y_TO float32 and int32 cycles by element: compute, trigger, row, stall.

    Raises:
      InputError: shapes do not fit, or cycles would not fit int32.

    Example:
      >>> eye, costs = np.eye(4, dtype=np.float32), [Costs(compute=3, row=1)]
      >>> y, cycles = forward(eye, eye, eye > 0, columns=2, costs=costs)
      >>> cycles.tolist()
      [[[6, 0, 4, 0], [6, 0, 4, 0]]]
    """
    stream = encode(w_OI, mask_OI, columns)
    _check(stream, x_TI, costs)
    y_RBNL, cycles_R4C = stream_product(
        _spread(x_TI, columns, len(costs)),
        None,
        *_arrays(stream, costs),
        n_rows=stream.shape[0],
        slots=_slots(costs),
    )
    y_RLO = np.asarray(y_RBNL).reshape(len(costs), -1, y_RBNL.shape[-1]).swapaxes(1, 2)
    y_RLO = y_RLO[..., : stream.shape[0]]
    sizes = np.diff(slice_bounds(len(x_TI), len(costs)))
    y_TO = np.concatenate([y[:size] for y, size in zip(y_RLO, sizes, strict=True)])
    return y_TO, np.asarray(cycles_R4C).swapaxes(1, 2)


def input_gradient(
    dy_TO: Float[np.ndarray, "T _"],
    w_OI: Float[np.ndarray, "O I"],
    mask_OI: Bool[np.ndarray, "_ _"],
    *,
    columns: int,
    costs: Sequence[Costs],
) -> tuple[Float[np.ndarray, "T I"], Int[np.ndarray, "R C 4"]]:
    """dX = dY W over the kept weights: the forward product of the transposed stream.

    Columns hold slices of the outputs; the rest is as for `forward`.
    """
    return forward(dy_TO, w_OI.T, mask_OI.T, columns=columns, costs=costs)


def weight_gradient(
    x_TI: Float[np.ndarray, "T _"],
    dy_TO: Float[np.ndarray, "_ _"],
    mask_OI: Bool[np.ndarray, "O I"],
    *,
    columns: int,
    costs: Sequence[Costs],
) -> tuple[Float[np.ndarray, "O I"], Int[np.ndarray, "R C 4"]]:
    """dW = dY^T X at the kept weights, zero elsewhere; a full mask gives all of it.

    The gradient of output o is broadcast along the PE rows, each kept (o, i) triggers a
    DOT on the elements of its column, and their parts are summed over the PE rows.

    Args:
      x_TI: activations.
      dy_TO: gradients of the outputs.
      mask_OI: True = kept, and computed.
      columns: C, elements of a PE row.
      costs: of an element of each PE row; their number is R.

    Returns:
      dw_OI float32 and int32 cycles by element: compute, trigger, row, stall.

    Raises:
      InputError: shapes do not fit, or cycles would not fit int32.
    """
    stream = encode(np.zeros(mask_OI.shape, np.float32), mask_OI, columns)
    _check(stream, x_TI, costs)
    expected = len(x_TI), stream.shape[0]
    if dy_TO.shape != expected:
        raise InputError(f"dy must have shape {expected}, found {dy_TO.shape}")
    n_blocks, block_rows = stream.starts_BN.shape[0], stream.starts_BN.shape[1] - 1
    dy_RO1L = _spread(dy_TO, dy_TO.shape[1], len(costs))
    pad = n_blocks * block_rows - dy_TO.shape[1]
    dy_ROL = jnp.pad(dy_RO1L[:, :, 0], ((0, 0), (0, pad), (0, 0)))
    part_RBK, cycles_R4C = stream_product(
        _spread(x_TI, columns, len(costs)),
        dy_ROL.reshape(len(costs), n_blocks, block_rows, -1),
        *_arrays(stream, costs),
        n_rows=stream.shape[0],
        slots=_slots(costs),
    )
    dw_OI = np.zeros(stream.shape, np.float32)
    dw_OI[stream.kept] = np.asarray(part_RBK.sum(0))[stream.places]
    return dw_OI, np.asarray(cycles_R4C).swapaxes(1, 2)


def _spread(x_TI: np.ndarray, columns: int, pe_rows: int) -> Float[Array, "R C S L"]:
    """Activations of every element: slice of the inputs by slice of the tokens."""
    tokens = slice_bounds(len(x_TI), pe_rows)
    inputs = slice_bounds(x_TI.shape[1], columns)
    # The first slices are the longest; at least one input and one token, of zeros.
    padded = -(-max(1, tokens[1]) // _LANES) * _LANES
    x_RCSL = np.zeros((pe_rows, columns, max(1, inputs[1]), padded), np.float32)
    for r in range(pe_rows):
        for c in range(columns):
            part_LS = x_TI[tokens[r] : tokens[r + 1], inputs[c] : inputs[c + 1]]
            x_RCSL[r, c, : part_LS.shape[1], : part_LS.shape[0]] = part_LS.T
    return jnp.asarray(x_RCSL)


def _check(stream: Stream, x_TI: np.ndarray, costs: Sequence[Costs]) -> None:
    """Refuses what the kernel would answer with a wrong number."""
    n_rows, n_inputs = stream.shape
    if x_TI.shape[1] != n_inputs:
        raise InputError(
            f"x must have the weight's {n_inputs} inputs, found {x_TI.shape[1]}"
        )
    if n_rows == 0:
        raise InputError("a weight stream must have at least one row, found none")
    if not costs:
        raise InputError("costs must have an entry for each PE row, found none")
    most = max(
        len(stream.kept[0]) * cost.weight + n_rows * (cost.row + cost.reduction)
        for cost in costs
    )
    if most >= 1 << 31:
        raise InputError(
            f"{most} cycles do not fit the kernel's 32-bit counts; simulate a smaller "
            "matrix, or take sparse_jax.dataflow.timeline"
        )


def _arrays(stream: Stream, costs: Sequence[Costs]) -> tuple[Array, ...]:
    """What `stream_product` takes after the activations."""
    costs_R5 = [
        (k.compute, k.trigger, k.row, k.reduction, k.rows_in_flight or 0) for k in costs
    ]
    arrays = stream.values_BK, stream.words_BK, stream.starts_BN
    return *map(jnp.asarray, arrays), jnp.asarray(costs_R5, jnp.int32)


def _slots(costs: Sequence[Costs]) -> int:
    """A power of two: the kernel takes remainders of it by masking."""
    most = max(cost.rows_in_flight or 1 for cost in costs)
    return max(_SLOTS, 1 << (most - 1).bit_length())
