"""Computing in JAX with the rounded inputs of the int8 kernels."""

from collections.abc import Iterable

import jax.numpy as jnp

from sparse_jax.ops import RoundedInput
from sparse_jax.quant.activations import Activations
from sparse_jax.quant.grid import Grids
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError, Params


def round_inputs(
    params: Params, grids: Grids, activations: Activations = Activations()
) -> Params:
    """Params whose quantised matrices round their inputs to 8 bits, for `models`.

    Matrices that have no grid, in all layers or in some, take their inputs as they are.

    Args:
      params: the dequantised weights.
      grids: says which matrices are quantised.
      activations: how their inputs are rounded.

    Raises:
      InputError: static scales that are not those of the grids.

    Example:
      >>> from sparse_jax import ops
      >>> from sparse_jax.quant import GridConfig, fit
      >>> kernel = jnp.ones((1, 2, 3))
      >>> grid = fit(kernel[0], GridConfig(bits=8, group=0), axis=-2)
      >>> rounded = round_inputs({"up": {"kernel": kernel}}, {("up/kernel", 0): grid})
      >>> type(rounded["up"]["kernel"]) is ops.RoundedInput
      True
    """
    if activations.kind == "static" and set(activations.scales) != set(grids):
        odd = min(set(activations.scales) ^ set(grids))
        raise InputError(
            f"activations.scales: {odd[0]} of layer {odd[1]} must have both a grid and "
            "a static scale, found one of the two"
        )
    leaves = leaf_paths(params)
    for path in dict.fromkeys(path for path, _ in grids):
        kernel = leaves[path]
        layers = [(path, index) for index in range(len(kernel))]
        active = scale = None
        if not all(layer in grids for layer in layers):
            active = jnp.array([layer in grids for layer in layers])
        if activations.kind == "static":
            scale = jnp.array([activations.scales.get(layer, 1.0) for layer in layers])
        leaves[path] = RoundedInput(kernel, scale, active)
    return from_paths(leaves)


def round_layer_inputs(
    layer_params: Params, index: int, paths: Iterable[str], activations: Activations
) -> Params:
    """As `round_inputs`, for `params["layers"]` at one layer.

    Args:
      layer_params: the dequantised weights.
      index: of the layer.
      paths: of its quantised matrices, in the whole model.
      activations: how their inputs are rounded.
    """
    leaves = leaf_paths({"layers": layer_params})
    for path in paths:
        scale = None
        if activations.kind == "static":
            scale = jnp.float32(activations.scales[path, index])
        leaves[path] = RoundedInput(leaves[path], scale)
    return from_paths(leaves)["layers"]
