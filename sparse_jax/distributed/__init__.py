"""Several processes that run one program: how they start, talk, and end together.

Every process calls the same functions in the same order. Files are written by process
0, the lead; what it finds in them, and what goes wrong there, reaches the others by
`on_lead`, so that no process waits for one that has stopped.
"""

from sparse_jax.distributed.end import PEER_LOST, PeersMissing, ending, is_peer_error
from sparse_jax.distributed.start import DistributedConfig, initialize
from sparse_jax.distributed.talk import (
    barrier,
    check_same,
    everywhere,
    first_difference,
    gather,
    is_lead,
    on_lead,
)

__all__ = [
    "PEER_LOST",
    "DistributedConfig",
    "PeersMissing",
    "barrier",
    "check_same",
    "ending",
    "everywhere",
    "first_difference",
    "gather",
    "initialize",
    "is_lead",
    "is_peer_error",
    "on_lead",
]
