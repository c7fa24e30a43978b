"""The Pallas kernel: one AXPY or DOT per non-zero, and the clocks of the elements.

The grid is (PE rows, blocks of stream rows). A PE row's activations [C, slice, L] stay
in VMEM while the blocks of the stream pass through scalar memory; clocks, counts of
non-zeros and the ends of the last `rows_in_flight` rows live in scratch from block to
block. The arithmetic and the clocks are those of `costs`; `reference` does the same
event by event.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from sparse_jax.kernels.weight_stream.costs import COMPUTE, ROW, STALL, TRIGGER
from sparse_jax.kernels.weight_stream.stream import SHIFT

REDUCTION, ROWS_IN_FLIGHT = 3, 4
"""Columns of the table of costs; the first three are those of the cycle counts."""

Ref = Any
"""A block of memory inside the kernel."""


@functools.partial(jax.jit, static_argnames=("n_rows", "slots", "interpret"))
def stream_product(
    x_RCSL: Float[Array, "R C S L"],
    dy_RBNL: Float[Array, "R B N L"] | None,
    values_BK: Float[Array, "B K"],
    words_BK: Int[Array, "B K"],
    starts_BN1: Int[Array, "B N1"],
    costs_R5: Int[Array, "R 5"],
    *,
    n_rows: int,
    slots: int,
    interpret: Any = None,
) -> tuple[Array, Int[Array, "R 4 C"]]:
    """The kernel on padded arrays; for those of the stream see `Stream`.

    Args:
      x_RCSL: activations of each element, S inputs by L tokens.
      dy_RBNL: gradients of the N rows of each block: the result is the weight
        gradient; None: it is Y.
      values_BK: of the non-zeros.
      words_BK: where they go.
      starts_BN1: where rows start.
      costs_R5: of each PE row: cycles of compute, trigger, row and reduction, and rows
        in flight, 0 = no limit.
      n_rows: of the stream.
      slots: rows whose end is remembered: a power of two, no less than rows in flight.
      interpret: True runs as plain XLA operations, `pltpu.InterpretParams()` imitates
        a TPU's memories; None: True wherever there is no TPU.

    Returns:
      y_RBNL, or parts of the weight gradient [R, B, K]; and the cycles.
    """
    if interpret is None:
        interpret = jax.default_backend() != "tpu"
    body, operand = (_axpy, values_BK[:, None]) if dy_RBNL is None else (_dot, dy_RBNL)
    arguments = x_RCSL, words_BK[:, None], starts_BN1[:, None], costs_R5, operand
    result, cycles_R4C = _call(body, arguments, n_rows, slots, interpret)
    return (result if dy_RBNL is None else result[:, :, 0]), cycles_R4C


def _call(
    body: Callable,
    arguments: tuple[Array, ...],
    n_rows: int,
    slots: int,
    interpret: Any,
) -> tuple[Array, Int[Array, "R 4 C"]]:
    """Lays the arrays out in blocks and memories."""
    x_RCSL, words_B1K, starts_B1N, costs_R5, _ = arguments
    pe_rows, columns, _, tokens = x_RCSL.shape
    blocks, _, words = words_B1K.shape
    rows = starts_B1N.shape[2] - 1
    rows_spec = pl.BlockSpec((1, 1, rows, tokens), lambda r, b: (r, b, 0, 0))
    words_spec = _scalars((1, 1, words), lambda r, b: (b, 0, 0))
    if body is _axpy:
        operand_spec, result_spec = words_spec, rows_spec
        shape = pe_rows, blocks, rows, tokens
    else:
        operand_spec = rows_spec
        result_spec = _scalars((1, 1, 1, words), lambda r, b: (r, b, 0, 0))
        shape = pe_rows, blocks, 1, words
    return pl.pallas_call(
        functools.partial(_kernel, body=body, n_rows=n_rows),
        grid=(pe_rows, blocks),
        in_specs=[
            pl.BlockSpec((1, *x_RCSL.shape[1:]), lambda r, b: (r, 0, 0, 0)),
            words_spec,
            _scalars((1, 1, rows + 1), lambda r, b: (b, 0, 0)),
            _scalars(costs_R5.shape, lambda r, b: (0, 0)),
            operand_spec,
        ],
        out_specs=[result_spec, _scalars((1, 4, columns), lambda r, b: (r, 0, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct((pe_rows, 4, columns), jnp.int32),
        ],
        scratch_shapes=[
            pltpu.VMEM((columns, tokens), jnp.float32),
            pltpu.SMEM((columns,), jnp.int32),
            pltpu.SMEM((columns,), jnp.int32),
            pltpu.SMEM((slots,), jnp.int32),
        ],
        interpret=interpret,
    )(*arguments)


def _scalars(shape: tuple[int, ...], index: Callable) -> pl.BlockSpec:
    """A block in scalar memory."""
    return pl.BlockSpec(shape, index, memory_space=pltpu.SMEM)


def _kernel(
    x_1CSL: Ref,
    words_11K: Ref,
    starts_11N: Ref,
    costs_R5: Ref,
    operand: Ref,
    result: Ref,
    cycles_14C: Ref,
    sum_CL: Ref,
    count_C: Ref,
    finish_C: Ref,
    done_S: Ref,
    *,
    body: Callable,
    n_rows: int,
) -> None:
    """One block of rows on one PE row."""
    r, b = pl.program_id(0), pl.program_id(1)
    block_rows = starts_11N.shape[2] - 1
    costs = [costs_R5[r, i] for i in range(4)]
    window = costs_R5[r, ROWS_IN_FLIGHT]
    last_slot = done_S.shape[0] - 1

    @pl.when(b == 0)
    def _():
        _fill(done_S, 0)
        _fill(finish_C, 0)
        for kind in (COMPUTE, TRIGGER, ROW, STALL):
            _fill(cycles_14C.at[0, kind], 0)

    def row(n, _):
        sum_CL[...] = jnp.zeros_like(sum_CL)
        _fill(count_C, 0)

        def weight(k, _):
            word = words_11K[0, 0, k]
            c, i = word >> SHIFT, word & ((1 << SHIFT) - 1)
            body(x_1CSL[0, c, pl.ds(i, 1), :], operand, result, sum_CL, c, n, k)
            count_C[c] += 1
            return 0

        lax.fori_loop(starts_11N[0, 0, n], starts_11N[0, 0, n + 1], weight, 0)
        if body is _axpy:
            result[0, 0, pl.ds(n, 1), :] = sum_CL[...].sum(0, keepdims=True)
        o = b * block_rows + n
        # Slots of rows before the first are still zero.
        gate = jnp.where(window > 0, done_S[(o - window) & last_slot], 0)
        done_S[o & last_slot] = _end_row(gate, costs, count_C, finish_C, cycles_14C)
        return 0

    lax.fori_loop(0, jnp.minimum(block_rows, n_rows - b * block_rows), row, 0)

    @pl.when(b == pl.num_programs(1) - 1)
    def _():
        _wait(done_S[(n_rows - 1) & last_slot], finish_C, cycles_14C)


def _axpy(x_1L, values_11K, result, sum_CL, c, n, k) -> None:
    """acc_c += w x."""
    del result, n
    sum_CL[pl.ds(c, 1), :] += values_11K[0, 0, k] * x_1L


def _dot(x_1L, dy_11NL, part_111K, sum_CL, c, n, k) -> None:
    """dw = dy . x."""
    del sum_CL, c
    part_111K[0, 0, 0, k] = jnp.sum(dy_11NL[0, 0, pl.ds(n, 1), :] * x_1L)


def _end_row(gate, costs, count_C: Ref, finish_C: Ref, cycles_14C: Ref):
    """Moves every column's clock past a row; returns when the row is reduced."""

    def column(c, last):
        start = jnp.maximum(finish_C[c], gate)
        compute, trigger = (count_C[c] * costs[kind] for kind in (COMPUTE, TRIGGER))
        cycles_14C[0, COMPUTE, c] += compute
        cycles_14C[0, TRIGGER, c] += trigger
        cycles_14C[0, ROW, c] += costs[ROW]
        cycles_14C[0, STALL, c] += start - finish_C[c]
        finish_C[c] = start + compute + trigger + costs[ROW]
        return jnp.maximum(last, finish_C[c])

    last = lax.fori_loop(0, finish_C.shape[0], column, jnp.int32(0))
    return last + costs[REDUCTION]


def _wait(total, finish_C: Ref, cycles_14C: Ref) -> None:
    """Makes every column stall until the last row is reduced."""

    def column(c, _):
        cycles_14C[0, STALL, c] += total - finish_C[c]
        return 0

    lax.fori_loop(0, finish_C.shape[0], column, 0)


def _fill(ref: Ref, value: int) -> None:
    """Writes scalar memory, which takes one word at a time."""

    def write(i, _):
        ref[i] = value
        return 0

    lax.fori_loop(0, ref.shape[0], write, 0)
