"""Tensors of sharded leaves, brought to process 0 one at a time and written there."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sparse_jax import distributed
from sparse_jax.io import names
from sparse_jax.io.names import Leaf, Slot

T = TypeVar("T")


def part(slot: Slot, leaf: Leaf) -> Any:
    """The part of a leaf that a slot holds, in the leaf's layout, on the host.

    Called by all processes, in the same order. Where they share the leaf, its part is
    first gathered on every device, which needs room for this one tensor.

    Args:
      slot: which tensor.
      leaf: the whole leaf, [L, ...] or not stacked, with any sharding.

    Returns:
      The part, a NumPy array; None on the other processes of several that share it.
    """
    if isinstance(leaf, np.ndarray):
        return names.slot_part(slot, leaf)
    sharding = leaf.sharding
    if len(sharding.device_set) == 1:
        return np.asarray(names.slot_part(slot, leaf))
    index = None if slot.layer is None else np.int32(slot.layer)
    if leaf.is_fully_addressable:
        return np.asarray(_taker(None)(leaf, index))
    assert isinstance(sharding, NamedSharding), sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    # Waited for everywhere: a process that ran ahead could meet the others' collectives
    # in another order.
    taken = jax.block_until_ready(_taker(whole)(leaf, index))
    return np.asarray(taken) if distributed.is_lead() else None


def write_gathered(parts: Iterable[T], write: Callable[[Iterator[T]], None]) -> None:
    """Lets the lead write what all processes gather, one part after the other.

    Args:
      parts: making each one is collective: every process makes all of them in order.
      write: called on the lead alone; takes the parts as it goes.

    Raises:
      InputError: on all processes, when `write` raises one.
    """
    remaining = iter(parts)
    failure: Exception | None = None
    if distributed.is_lead():
        try:
            write(remaining)
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        for _ in remaining:  # the others gather what the lead could not write, too
            pass

    def report() -> None:
        if failure is not None:
            raise failure

    distributed.on_lead(report)


@functools.cache
def _taker(sharding: NamedSharding | None):
    """(leaf, layer) -> a copy of that layer, or of all of a leaf that is not stacked.

    A copy, since JAX keeps what it has once brought to the host with the array.
    """

    def take(leaf, index):
        return jnp.copy(leaf) if index is None else leaf[index]

    return jax.jit(take, out_shardings=sharding)
