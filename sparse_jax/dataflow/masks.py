"""Where the non-zeros lie: none missing, drawn, or those of a real model.

Everything the machine asks about a mask is how many non-zeros each row of the weight
stream has in each slice of its columns. Rows are the outputs of W [O, I], and slices
cut its inputs, for the product forward and for the weight gradient; for the input
gradient it is the other way round.
"""

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Integer

from sparse_jax.dataflow.counts import (
    check_kind,
    draw_counts,
    draw_mask,
    slice_counts,
)
from sparse_jax.dataflow.timeline import timeline
from sparse_jax.dataflow.workload import Matrix
from sparse_jax.kernels.weight_stream.costs import Costs, slice_bounds
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

Counts = Integer[np.ndarray, "rows slices"]


class Stream(NamedTuple):
    """The non-zeros of one matrix as a product meets them.

    Attributes:
      rows: of the stream.
      weights: non-zeros; of a drawn mask, the expected number.
      run: given a number of columns and the costs of an element, the cycles until the
        end and the non-zeros that a column meets, on average.
    """

    rows: int
    weights: float
    run: Callable[[int, Costs], tuple[int, float]]


def run_counts(counts_OC: Counts, costs: Costs) -> tuple[int, float]:
    """What `Stream.run` gives, from the non-zeros of each row in each slice."""
    run = timeline(
        counts_OC,
        weight_cycles=costs.weight,
        row_cycles=costs.row,
        reduction_cycles=costs.reduction,
        rows_in_flight=costs.rows_in_flight,
    )
    return run.total, float(run.weights_C.mean())


@runtime_checkable
class Masks(Protocol):
    """The non-zeros of a model; `layers` is how many of its layers differ, 1 or all."""

    name: str
    layers: int

    def key(self, layer: int, matrix: Matrix) -> Hashable:
        """Equal for matrices whose streams are equal."""
        ...

    def stream(self, layer: int, matrix: Matrix, transposed: bool = False) -> Stream:
        """The non-zeros of a matrix; transposed for the input gradient.

        Raises:
          InputError: a mask has another shape than its weight.
        """
        ...


def dense_stream(matrix: Matrix, transposed: bool = False) -> Stream:
    """The stream of a dense matrix.

    Example:
      >>> stream = dense_stream(Matrix(path="", outputs=2, inputs=5))
      >>> stream.run(2, Costs(compute=10))  # slices of three and two inputs
      (60, 5.0)
    """
    rows, cut = matrix.stream_shape(transposed)
    return Stream(rows, matrix.size, functools.partial(_run_dense, rows, cut))


def _run_dense(rows: int, cut: int, columns: int, costs: Costs) -> tuple[int, float]:
    sizes_C = np.diff(slice_bounds(cut, columns))
    # One row, shown many times, which `timeline` knows how to take.
    return run_counts(np.broadcast_to(sizes_C, (rows, columns)), costs)


class NoMasks:
    """A dense model."""

    name = "dense"
    layers = 1

    def key(self, layer: int, matrix: Matrix) -> Hashable:
        """Its shape."""
        del layer
        return matrix.outputs, matrix.inputs

    def stream(self, layer: int, matrix: Matrix, transposed: bool = False) -> Stream:
        """See `dense_stream`."""
        del layer
        return dense_stream(matrix, transposed)


class DrawnMasks:
    """Counts drawn at random, as a pruner of that kind would leave them.

    All layers share one draw, and so do matrices of one shape: thousands of rows, drawn
    by chance, stand for all.

    Attributes:
      name: the kind.
      sparsity: fraction of zeros in every matrix.
    """

    layers = 1

    def __init__(self, kind: str, sparsity: float, seed: int = 0):
        """Draws nothing yet.

        Args:
          kind: "uniform", "balanced", "sparsegpt" or a pattern, see `counts`.
          sparsity: fraction of zeros.
          seed: of the draw.

        Raises:
          InputError: an unknown kind, or a sparsity that it cannot have.
        """
        check_kind(kind, sparsity)
        self.name, self.sparsity, self._seed = kind, sparsity, seed
        self._drawn: dict[Hashable, Counts] = {}
        self._runs: dict[Hashable, tuple[int, float]] = {}
        self._whole: dict[Hashable, Bool[np.ndarray, "O I"]] = {}

    def key(self, layer: int, matrix: Matrix) -> Hashable:
        """Its shape."""
        del layer
        return matrix.outputs, matrix.inputs

    def stream(self, layer: int, matrix: Matrix, transposed: bool = False) -> Stream:
        """One draw for each shape, direction and number of slices."""
        del layer
        if self.sparsity == 0:
            return dense_stream(matrix, transposed)
        rows, _ = matrix.stream_shape(transposed)
        run = functools.partial(self._run, matrix, transposed)
        return Stream(rows, (1 - self.sparsity) * matrix.size, run)

    def _run(
        self, matrix: Matrix, transposed: bool, columns: int, costs: Costs
    ) -> tuple[int, float]:
        """Draws once, and never times the same twice."""
        key = self.key(0, matrix), transposed, columns
        if key not in self._drawn:
            counts = self._counts(matrix, transposed, columns)
            # In the smallest type, those of a 7B model stay in memory.
            most = int(counts.max(initial=0))
            self._drawn[key] = counts.astype(np.min_scalar_type(most))
        if (key, costs) not in self._runs:
            self._runs[key, costs] = run_counts(self._drawn[key], costs)
        return self._runs[key, costs]

    def _counts(self, matrix: Matrix, transposed: bool, slices: int) -> Counts:
        seed = [self._seed, matrix.outputs, matrix.inputs]
        if self.name in ("uniform", "balanced"):
            rng = np.random.default_rng([*seed, transposed, slices])
            shape = matrix.stream_shape(transposed)
            return draw_counts(rng, shape, self.sparsity, slices, self.name)
        key = self.key(0, matrix)
        if key not in self._whole:
            rng, shape = np.random.default_rng(seed), (matrix.outputs, matrix.inputs)
            self._whole[key] = draw_mask(rng, shape, self.sparsity, self.name)
        kept_OI = self._whole[key]
        return slice_counts(kept_OI.T if transposed else kept_OI, slices)


@runtime_checkable
class Blocks(Protocol):
    """A model of which one layer's masks are read at a time, see `io.open_blocks`."""

    config: LlamaConfig

    def layer_masks(self, index: int) -> dict[str, jax.Array]:
        """Masks [in, out] by leaf path, True = kept; a matrix without is dense."""
        ...


class ModelMasks:
    """The masks of a model, of which one layer is in memory.

    Attributes:
      name: of the source.
      layers: those of the model.
    """

    def __init__(self, blocks: Blocks, *, first_layer: bool = False):
        """Reads nothing yet.

        Args:
          blocks: `io.open_blocks(path)`, or anything that reads a layer's masks.
          first_layer: let the first layer stand for all.
        """
        self.name, self._blocks = "model", blocks
        self.layers = 1 if first_layer else blocks.config.n_layers
        self._layer: int | None = None
        self._masks: dict[str, Bool[np.ndarray, "O I"]] = {}
        self._counted: dict[tuple[str, bool, int], Counts] = {}

    def key(self, layer: int, matrix: Matrix) -> Hashable:
        """Every matrix has its own."""
        return layer, matrix.path

    def stream(self, layer: int, matrix: Matrix, transposed: bool = False) -> Stream:
        """Counted from the mask.

        Raises:
          InputError: a mask has another shape than its weight.
        """
        self._read(layer)
        if matrix.path not in self._masks:
            return dense_stream(matrix, transposed)
        kept_OI = self._masks[matrix.path]
        if kept_OI.shape != (matrix.outputs, matrix.inputs):
            raise InputError(
                f"layer {layer}: the mask of {matrix.path} has shape "
                f"{list(kept_OI.shape[::-1])}, its weight "
                f"{[matrix.inputs, matrix.outputs]}; use the masks of this model"
            )
        rows, _ = matrix.stream_shape(transposed)
        run = functools.partial(self._run, layer, matrix.path, transposed)
        return Stream(rows, int(np.count_nonzero(kept_OI)), run)

    def _read(self, layer: int) -> None:
        if layer != self._layer:
            masks = self._blocks.layer_masks(layer)
            self._masks = {path: np.asarray(mask).T for path, mask in masks.items()}
            self._layer, self._counted = layer, {}

    def _run(
        self, layer: int, path: str, transposed: bool, columns: int, costs: Costs
    ) -> tuple[int, float]:
        self._read(layer)
        key = path, transposed, columns
        if key not in self._counted:
            kept_OI = self._masks[path]
            kept_OI = kept_OI.T if transposed else kept_OI
            self._counted[key] = slice_counts(kept_OI, columns)
        return run_counts(self._counted[key], costs)
