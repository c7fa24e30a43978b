"""One of several processes that tries all ways to talk; the lead prints what came."""

import json

import jax

from sparse_jax import distributed
from sparse_jax.types import InputError


def problem(function):
    """The name and the words of what a call raises; None when it raises nothing."""
    try:
        function()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def refuse(kind, processes):
    """Raises on some of the processes."""
    if jax.process_index() in processes:
        raise kind(f"no room on process {jax.process_index()}")
    return "fine"


def talk():
    index = jax.process_index()
    same = {"train": {"steps": 5, "peak": 1e-3}}
    other = {"train": {"steps": 5 + index, "peak": 1e-3}}
    return {
        "devices": jax.device_count(),
        "lead": distributed.on_lead(lambda: [index, None, 0.1]),
        "gathered": distributed.gather({"index": index}),
        "input": problem(lambda: distributed.on_lead(lambda: refuse(InputError, [0]))),
        "bug": problem(lambda: distributed.on_lead(lambda: refuse(KeyError, [0]))),
        "fine": distributed.everywhere(lambda: refuse(InputError, [])),
        "one": problem(lambda: distributed.everywhere(lambda: refuse(InputError, [1]))),
        "same": problem(lambda: distributed.check_same(same, "config")),
        "other": problem(lambda: distributed.check_same(other, "config")),
        "barrier": problem(lambda: distributed.barrier("here")),
        "lost": problem(lambda: distributed.barrier(f"at {index}")),
    }


if __name__ == "__main__":
    distributed.initialize(distributed.DistributedConfig(peer_timeout=30))
    found = distributed.gather(talk())
    if distributed.is_lead():
        print(json.dumps(found))
