"""What follows a block's solve: its training, and the scales of its rounded inputs."""

import jax
from jaxtyping import Array

from sparse_jax.models import INPUTS, LlamaConfig
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.block_training import train_block
from sparse_jax.prune.dense_stream import DenseStream
from sparse_jax.prune.quantize_config import QuantizeConfig
from sparse_jax.prune.ranges import input_ranges, static_scale
from sparse_jax.prune.solve_block import PrunedBlock
from sparse_jax.sparsity.adapters import merge
from sparse_jax.types import Params


def finish_block(
    index: int,
    block: PrunedBlock,
    inputs: Activations,
    stream: DenseStream | None,
    model_config: LlamaConfig,
    config: QuantizeConfig,
) -> PrunedBlock:
    """Trains a solved block, if the config says so, and measures its inputs.

    Static scales are those of the block as it is in the end.

    Args:
      index: of the block.
      block: solved.
      inputs: activations that enter it.
      stream: of the model as it came; None without training.
      model_config: architecture.
      config: what was asked for.
    """
    if config.tune is not None and stream is not None:
        arguments = block.params, block.masks, block.grids, inputs
        trained = train_block(
            *arguments, stream.targets(index), model_config, config.tune
        )
        errors = {"block_error": [trained.before, trained.after]}
        block = block._replace(
            params=trained.params,
            grids=trained.grids,
            rows=[row | errors for row in block.rows],
        )
    if config.activations == "static" and block.grids:
        params = merge_layer(block.params, block.adapter)
        found = input_ranges(
            params, inputs, model_config, tuple(INPUTS), inputs.samples
        )
        scales = {
            f"layers/{name}/kernel": static_scale(found[tap])
            for tap, names in INPUTS.items()
            for name in names
        }
        block = block._replace(input_scales={p: scales[p] for p in block.grids})
    return block


def merge_layer(layer_params: Params, adapter: dict[str, Array]) -> Params:
    """What the matrices of a block compute with all that stands beside them."""
    return _merge(layer_params, adapter) if adapter else layer_params


@jax.jit
def _merge(layer_params, adapter):
    return merge({"layers": layer_params}, adapter)["layers"]
