"""Calibration tokens on their way through the dense model."""

import functools
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from sparse_jax.models import Compute
from sparse_jax.prune.activations import Activations
from sparse_jax.prune.blockwise import Blocks, embed_tokens, place_layer, run_block


class DenseStream:
    """Carries calibration tokens through the dense blocks, for what a block should be.

    Args:
      blocks: the model before anything was done to it.
      tokens: calibration sequences.
      compute: the activations' dtype.
      batch_size: sequences that go through a block at a time.
      spool: folder for the activations; None keeps them in memory.

    Example:
      >>> import jax
      >>> from sparse_jax.models import init, sizes
      >>> from sparse_jax.prune import ParamsBlocks
      >>> config = sizes.get("tiny")
      >>> blocks = ParamsBlocks(init(jax.random.key(0), config), config)
      >>> stream = DenseStream(blocks, np.zeros((1, 4), np.int32))
      >>> [batch.shape for batch in stream.targets(1)]
      [(1, 4, 128)]
    """

    def __init__(
        self,
        blocks: Blocks,
        tokens: Int[Array | np.ndarray, "samples length"],
        compute: Compute = Compute(),
        *,
        batch_size: int = 16,
        spool: pathlib.Path | None = None,
    ):
        self._blocks, self._done = blocks, 0
        options: dict[str, Any] = {"batch_size": batch_size, "spool": spool}
        self._x = embed_tokens(blocks, tokens, compute, **options)

    def targets(self, index: int) -> Activations:
        """Outputs of the dense block `index`, valid until the next call.

        Indices may only rise; -1 gives what enters the first block.
        """
        while self._done <= index:
            layer = place_layer(self._blocks.layer(self._done))
            run = functools.partial(run_block, layer, config=self._blocks.config)
            self._x.update(run)
            self._done += 1
        return self._x
