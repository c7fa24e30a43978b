"""The device mesh, its axes, and the one table that says how leaves are sharded.

Three axes, each of size 1 by default:

    data    replicas of the model; the batch is split, gradients are summed
    fsdp    the batch is split and so are the weights (fully sharded data parallel)
    tensor  heads, feed-forward neurons and the vocabulary are split
"""

from sparse_jax.mesh.axes import (
    AXES,
    BATCH,
    MeshConfig,
    Needs,
    batch_needs,
    check,
    share_of,
)
from sparse_jax.mesh.devices import (
    abstract_mesh,
    batch_share,
    check_here,
    current,
    make_mesh,
)
from sparse_jax.mesh.sharding import (
    SHARDING_RULES,
    batch_sharding,
    batch_shards,
    constrain,
    constrain_tree,
    place_rows,
    shardings,
    spec_for,
    specs,
    to_host,
)

__all__ = [
    "AXES",
    "BATCH",
    "SHARDING_RULES",
    "MeshConfig",
    "Needs",
    "abstract_mesh",
    "batch_needs",
    "batch_sharding",
    "batch_shards",
    "batch_share",
    "check",
    "check_here",
    "constrain",
    "constrain_tree",
    "current",
    "make_mesh",
    "place_rows",
    "shardings",
    "share_of",
    "spec_for",
    "specs",
    "to_host",
]
