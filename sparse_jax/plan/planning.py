"""The plan of a run as numbers: one step, and all stages of the recipe."""

import dataclasses
import resource
import sys
from typing import Any

from sparse_jax.evaluate import training_flops_per_token
from sparse_jax.plan import advice, collectives, compiled, flops, memory, traffic
from sparse_jax.plan.job import Job, make_job
from sparse_jax.plan.machines import Machine
from sparse_jax.plan.roofline import (
    Roofline,
    estimated_collectives,
    estimated_traffic,
    roofline,
)
from sparse_jax.recipe import Pretrain, Recipe
from sparse_jax.recipe.check import root_model

DAY = 86_400
OPTIONS = 5
"""How many changes are proposed."""


def plan(recipe: Recipe, machine: Machine, *, estimate: bool = False) -> dict[str, Any]:
    """Plans a recipe's training on a machine.

    The step is compiled for it when the compiler is at hand; else, or when `estimate`
    is set, everything is arithmetic, and `source` in the result says so.

    Args:
      recipe: the run; its step is that of `make_job`, which other stages are compared
        with by their operations.
      machine: where it runs.
      estimate: do not compile.

    Returns:
      Plain data, ready for JSON; `text.show` prints it.

    Raises:
      InputError: the mesh does not fit the machine, the model or the batch; or XLA
        copies whole arrays to every device.
    """
    job = make_job(recipe, machine)
    held, program = memory.estimate(job, machine.chip.granule), None
    executed = flops.executed(job)
    found, loops = estimated_collectives(job), 0
    moved, scale = estimated_traffic(job), 1.0
    if not estimate and compiled.available(machine):
        program = compiled.compile_step(job, machine)
        scale = program.temporaries / held.temporaries
        held = held.with_temporaries(program.temporaries)
        found, loops = collectives.collectives(program.text, machine.devices)
        moved = float(traffic.moved(program.text))
    times = roofline(
        machine, executed=executed, moved=moved, sent=sum(c.sent for c in found)
    )
    estimated = roofline(
        machine,
        executed=executed,
        moved=estimated_traffic(job),
        sent=sum(c.sent for c in estimated_collectives(job)),
    )
    fits = held.total <= machine.chip.memory
    return {
        "source": _source(machine, program, estimate),
        "machine": _machine(machine),
        "job": _job(job),
        "memory": _memory(held, machine, fits, program),
        "step": _step(job, machine, times, executed, moved)
        | {"estimated_seconds": estimated.best},
        "collectives": [dataclasses.asdict(c) for c in found],
        "loops_of_unknown_length": loops,
        "recipe": _recipe(recipe, job, times),
        "options": [
            dataclasses.asdict(o)
            for o in advice.options(job, machine, scale=scale)[:OPTIONS]
        ],
    }


def _source(
    machine: Machine, program: compiled.Compiled | None, asked: bool
) -> dict[str, Any]:
    """Where the numbers come from."""
    if program is not None:
        return {
            "kind": "compiled",
            "compile_seconds": program.seconds,
            "compile_cpu_seconds": program.cpu_seconds,
            "instructions": program.instructions,
            "host_memory": _host_memory(),
        }
    if machine.chip.platform != "tpu":
        reason = "there is no compiler for GPUs that are not there"
    elif asked:
        reason = "an estimate was asked for"
    else:
        reason = "libtpu is not installed; pip install libtpu compiles without a TPU"
    return {"kind": "estimated", "reason": reason}


def _host_memory() -> int:
    """The most bytes this process has used."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _machine(machine: Machine) -> dict[str, Any]:
    chip = dataclasses.asdict(machine.chip)
    keep = ("name", "memory", "flops", "memory_rate", "source")
    return {
        "name": machine.name,
        "devices": machine.devices,
        "link_rate": machine.link_rate,
        "chip": {name: chip[name] for name in keep},
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "weights": memory.weights(job),
        "mesh": dataclasses.asdict(job.mesh),
        "batch_size": job.batch_size,
        "seq_len": job.seq_len,
        "accumulate": job.accumulate,
        "rows_per_device": job.rows,
        "tokens": job.tokens,
        "compute": dataclasses.asdict(job.compute),
        "moment_dtype": job.optimizer.moment_dtype,
    }


def _memory(
    held: memory.Memory,
    machine: Machine,
    fits: bool,
    program: compiled.Compiled | None,
) -> dict[str, Any]:
    return dataclasses.asdict(held) | {
        "arguments": held.arguments,
        "compiled_arguments": None if program is None else program.arguments,
        "temporaries": held.temporaries,
        "total": held.total,
        "available": machine.chip.memory,
        "fits": fits,
    }


def _step(
    job: Job, machine: Machine, times: Roofline, executed: int, moved: float
) -> dict[str, Any]:
    model = training_flops_per_token(job.model, job.seq_len) * job.tokens
    peak = machine.devices * machine.chip.flops
    return {
        "model_flops": model,
        "executed_flops": executed,
        "moved_bytes": moved,
        "seconds": dataclasses.asdict(times),
        "limit": times.limit,
        "best_seconds": times.best,
        "worst_seconds": times.worst,
        "tokens_per_second": [job.tokens / times.worst, job.tokens / times.best],
        "utilisation": [model / peak / times.worst, model / peak / times.best],
    }


def _recipe(recipe: Recipe, job: Job, times: Roofline) -> dict[str, Any]:
    """Tokens and days of every stage that trains.

    The step of a stage with another model, or with fewer tokens, takes as much less
    time as it has operations.
    """
    whole = training_flops_per_token(job.model, job.seq_len) * job.tokens
    stages: dict[str, dict[str, Any]] = {}
    for name, stage in recipe.enabled_stages().items():
        if isinstance(stage, Pretrain):
            config = recipe.train_config(stage)
            model = root_model(recipe, name)
            tokens = config.steps * config.tokens_per_step
            flops = tokens * training_flops_per_token(model, config.seq_len)
            days = flops / whole / DAY
            stages[name] = {
                "steps": config.steps,
                "tokens": tokens,
                "days": [days * times.best, days * times.worst],
            }
    return {
        "stages": stages,
        "tokens": sum(stage["tokens"] for stage in stages.values()),
        "days": [sum(s["days"][bound] for s in stages.values()) for bound in (0, 1)],
    }
