"""The paper's training step compiles for a real TPU pod, with no TPU.

Slow, about a minute: `pip install libtpu`, then `pytest -m slow` on this file.
"""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from configs import sparse70
from sparse_jax import mesh as mesh_lib, models, train
from sparse_jax.types import Batch

recipe = sparse70.llama2_7b()
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16")
devices = np.array(topology.devices).reshape(1, 256, 1)
mesh = Mesh(devices, mesh_lib.AXES, axis_types=(AxisType.Auto,) * 3)


def mask(path, leaf):
    prunable = path[0].key == "layers" and path[-1].key == "kernel"
    return jax.ShapeDtypeStruct(leaf.shape, bool) if prunable else None


def place(tree):
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        tree,
        mesh_lib.shardings(mesh, tree),
    )


optimizer = recipe.train.optimizer
params = models.abstract_params(recipe.model)
masks = jax.tree_util.tree_map_with_path(mask, params)
state = jax.eval_shape(
    lambda p, m: train.init_state(p, m, optimizer, rng=jax.random.key(0)), params, masks
)
rows = mesh_lib.batch_sharding(mesh)
batch = Batch(*(
    jax.ShapeDtypeStruct((256, 4096), dtype, sharding=rows)
    for dtype in (jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32)
))
loss = train.NextToken(model=recipe.model, compute=recipe.compute)
with jax.set_mesh(mesh):
    step = train.train_step.lower(
        place(state), batch, 1e-4, None, loss=loss, optimizer=optimizer
    ).compile()
memory = step.memory_analysis()
gib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30
print(f"GiB per chip: {gib:.2f}")
"""


@pytest.mark.slow
def test_the_7b_step_fits_a_v5e_pod():
    pytest.importorskip("libtpu", reason="pip install libtpu, a compile-only client")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
    assert float(done.stdout.split("GiB per chip:")[1]) < 16.0
