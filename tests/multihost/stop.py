"""One of several processes that says when it is ready, and then works in its way."""

import sys
import time

import jax
from jax.experimental import multihost_utils

from sparse_jax import distributed
from sparse_jax.types import InputError

# What launchers do with exceptions.
sys.path.insert(0, "launch")
import ending

PEER_TIMEOUT = 8  # seconds


def work(how: str) -> None:
    if how == "computes":
        for _ in range(600):
            jax.numpy.ones(3).sum().block_until_ready()
            time.sleep(0.1)
    elif how == "waits":
        distributed.barrier("end")
    elif how == "collective":
        multihost_utils.process_allgather(jax.process_index())
    elif how == "refuses":
        raise InputError("no such file here")
    elif how == "breaks":
        raise KeyError("a bug")


def main() -> None:
    config = distributed.DistributedConfig(peer_timeout=PEER_TIMEOUT)
    distributed.initialize(config)
    distributed.barrier("ready")
    print("ready", flush=True)
    # Each process's way is the argument of its number.
    work(sys.argv[1 + jax.process_index()])


if __name__ == "__main__":
    ending.guarded(main)
