"""Compiles small programs on 8 virtual devices; prints what the plan says of them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
from jax import P, lax
from jax.sharding import NamedSharding

from sparse_jax import mesh as mesh_lib
from sparse_jax import train
from sparse_jax.mesh import MeshConfig
from sparse_jax.plan import collectives, compiled, memory
from sparse_jax.plan import job as jobs
from sparse_jax.plan.roofline import estimated_collectives
from sparse_jax.sparsity.adapters import LORA_TRAINED, LoraConfig
from tests.plan.jobs import JOB


def changed(**fields):
    return dataclasses.replace(JOB, **fields)


JOBS = {
    "tensor": changed(
        mesh=MeshConfig(fsdp=2, tensor=4), accumulate=4, isolate_documents=True
    ),
    "teacher": changed(
        mask_mode="straight_through",
        distill=train.DistillConfig(),
        optimizer=train.OptimizerConfig(
            pruned_decay=train.PrunedDecayConfig(rule="ast", peak=1e-5)
        ),
    ),
    "adapters": changed(
        distill=train.DistillConfig(kl_weight=0.0, feature_weight=1.0),
        lora=LoraConfig(),
        optimizer=train.OptimizerConfig(trainable=LORA_TRAINED),
    ),
    "no remat": changed(
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        compute=dataclasses.replace(JOB.compute, remat="none"),
    ),
}


def every_collective():
    """Each kind once in a loop of 5, or once; a device holds [4, 16] float32."""
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=kinds)

    def body(x):
        def step(x, _):
            whole = lax.all_gather(x, "b", tiled=True)
            part = lax.psum_scatter(jnp.sin(whole), "b", tiled=True)
            return part + lax.ppermute(jnp.cos(part), "a", [(0, 1), (1, 0)]), None

        x, _ = lax.scan(step, x, None, length=5)
        return lax.psum(lax.all_to_all(jnp.sin(x), "b", 0, 0, tiled=True), ("a", "b"))

    function = jax.shard_map(
        body, mesh=mesh, in_specs=P(("a", "b")), out_specs=P(), check_vma=False
    )
    text = jax.jit(function).lower(jnp.zeros((32, 16))).compile().as_text()
    found, unknown = collectives.collectives(text, 8)
    return {c.kind: [c.count, c.payload, c.sent] for c in found} | {"loops": unknown}


def rematerialized():
    """What XLA reports when one sharding cannot become another; as the plan sees it."""
    kinds = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ("a", "b", "c"), axis_types=kinds)
    rows = NamedSharding(mesh, P(("a", "b", "c")))
    columns = NamedSharding(mesh, P(None, ("c", "a")))
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)
    moved = jax.jit(lambda x: lax.with_sharding_constraint(jnp.sin(x), columns) * 2)
    with compiled.captured_stderr() as log:
        moved.lower(x).compile()
    return log()


def step(job):
    """What XLA and the estimate say of a training step."""
    mesh = mesh_lib.make_mesh(job.mesh)
    with jax.set_mesh(mesh):
        program = jobs.lower(job, mesh).compile()
    found = program.memory_analysis()
    estimate = memory.estimate(job)
    sent, _ = collectives.collectives(program.as_text(), 8)
    return {
        "arguments": [found.argument_size_in_bytes, estimate.arguments],
        "temporaries": [found.temp_size_in_bytes, estimate.temporaries],
        "sent": [
            sum(c.sent for c in sent),
            sum(c.sent for c in estimated_collectives(job)),
        ],
    }


if __name__ == "__main__":
    result = {"collectives": every_collective(), "log": rematerialized()}
    result |= {name: step(job) for name, job in JOBS.items()}
    print(json.dumps(result))
