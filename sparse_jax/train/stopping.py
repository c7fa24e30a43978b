"""SIGTERM: every process stops at the same step, with its work saved.

A handler only notes that the signal came. Training asks at every step and other work at
its seams, all processes together; when any of them was asked to stop, all do.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sparse_jax import distributed
from sparse_jax import mesh as mesh_lib
from sparse_jax.train.placement import flag_to_devices
from sparse_jax.types import Interrupted

_asked = threading.Event()


@contextlib.contextmanager
def listen_for_sigterm() -> Iterator[None]:
    """Notes SIGTERM for `stop_if_asked` and `train.fit`, instead of ending at once.

    Further signals change nothing: the first is being obeyed. Enter it after
    `jax.distributed.initialize`, which sets a handler of its own. Outside of the main
    thread, where Python forbids handlers, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked.clear()


def stop_if_asked(where: str) -> None:
    """Raises Interrupted on all processes when any was sent SIGTERM.

    Every process calls it at the same places in the same order.

    Args:
      where: what was being done, for the message; finished work is on disk.
    """
    if any(distributed.gather(_asked.is_set())):
        raise interrupted(f"{where}: stopped")


def interrupted(what: str) -> Interrupted:
    """The exception, with what was done at the start of its message."""
    return Interrupted(f"{what} by SIGTERM; run the same command again to continue")


class StopPoll:
    """Asks, once a step, whether to stop; the answer is the same on all processes.

    With several of them it is the answer to the question of the step before, which by
    then has long arrived: like the loss, it never makes a device wait for the host. On
    CPUs the hosts ask each other, at once.
    """

    def __init__(self):
        self._pending: jax.Array | None = None

    def __call__(self) -> bool:
        """Whether to stop now."""
        if jax.process_count() == 1:
            return _asked.is_set()
        if jax.default_backend() == "cpu":
            # There a second program beside the step can take the threads that the
            # step's own exchange needs, and both wait for ever.
            return any(distributed.gather(_asked.is_set()))
        answer, self._pending = self._pending, _any_process(_asked.is_set())
        return answer is not None and bool(jax.device_get(answer))


def _any_process(flag: bool) -> jax.Array:
    """Whether the flag is set on any process; dispatched, not waited for."""
    return _any(mesh_lib.current())(flag_to_devices(flag))


@functools.cache
def _any(mesh: jax.sharding.Mesh):
    return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
