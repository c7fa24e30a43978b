"""Shapes and aliases that every package shares.

Dimension letters, used in array names inside functions and in jaxtyping outside:

    B batch   T time    D model width   F feed-forward width   V vocabulary
    L layers  N query heads   K key/value heads   H width of one head
"""

from typing import Any, NamedTuple

import flax.struct
import numpy as np
from jaxtyping import Array, Float, Int

Tree = Any
"""Any pytree."""

Params = dict[str, Any]
"""Nested dict of arrays; every prunable matrix is a `kernel` of shape [L, in, out]."""

Masks = dict[str, Any]
"""The tree of `Params`: bool arrays, True = kept; None where a rule says dense."""


class InputError(ValueError):
    """Bad input from a user: one sentence that says what to change.

    Launchers print the message alone and exit non-zero; everything else that is
    raised is a bug and keeps its traceback.
    """


class Interrupted(Exception):
    """SIGTERM asked for a stop; what was done is saved, and can be gone on with.

    Launchers print the message alone and exit with 75 (EX_TEMPFAIL: try again).
    """


class Batch(NamedTuple):
    """One batch of packed token rows; every array is [B, T].

    Attributes:
      tokens: input token ids.
      targets: the token that follows each input.
      loss_weights: weight of each target in the loss, 0.0 to leave it out.
      segment_ids: number of the document inside its row, below 0 in padding;
        attention may be kept inside a document (see `DataConfig.isolate_documents`).
      positions: position of each token for RoPE.
    """

    tokens: Int[Array | np.ndarray, "B T"]
    targets: Int[Array | np.ndarray, "B T"]
    loss_weights: Float[Array | np.ndarray, "B T"]
    segment_ids: Int[Array | np.ndarray, "B T"]
    positions: Int[Array | np.ndarray, "B T"]


@flax.struct.dataclass
class State:
    """Everything a training step reads and writes, as one pytree.

    Attributes:
      step: int32 scalar, optimizer steps taken in this stage.
      params: float32 master weights.
      masks: bool arrays, True = kept, or None for dense leaves.
      opt: the optimizer's state.
      rng: a JAX random key.
      data: int32 scalar, the next batch of the data stream.
      extra: what a method adds (low-rank factors, dual variables, ...).
    """

    # Annotated as trees: transformations put shapes, flags and shardings there, too.
    step: Tree
    params: Tree
    masks: Tree
    opt: Tree
    rng: Tree
    data: Tree
    extra: Tree
