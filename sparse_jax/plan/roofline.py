"""Time of a step from three rates: arithmetic, main memory, links.

A program that overlaps all three perfectly takes as long as the slowest; one that
overlaps nothing, their sum. Both are bounds by published peaks: what a real machine
reaches lies beyond the first.
"""

import dataclasses

import jax.numpy as jnp

from sparse_jax.plan.collectives import Collective
from sparse_jax.plan.job import Job
from sparse_jax.plan.machines import Machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of a step by what limits it.

    Attributes:
      compute: executed operations at the chip's bfloat16 peak.
      memory: bytes between main memory and chip at its rate.
      links: bytes that a device sends at the rate of its links.
    """

    compute: float
    memory: float
    links: float

    @property
    def limit(self) -> str:
        """What takes longest."""
        times = dataclasses.asdict(self)
        return max(times, key=times.__getitem__)

    @property
    def best(self) -> float:
        """Everything overlaps."""
        return max(dataclasses.astuple(self))

    @property
    def worst(self) -> float:
        """Nothing overlaps."""
        return sum(dataclasses.astuple(self))


def roofline(machine: Machine, *, executed: int, moved: float, sent: float) -> Roofline:
    """Times of one step.

    Args:
      machine: its peaks.
      executed: operations over all devices.
      moved: bytes a device reads and writes.
      sent: bytes a device sends.

    Example:
      >>> from sparse_jax.plan import machines
      >>> one = machines.gpus("1xH100")
      >>> roofline(one, executed=989 * 10**12, moved=0.0, sent=0.0).best
      1.0
    """
    chip = machine.chip
    return Roofline(
        compute=executed / machine.devices / chip.flops,
        memory=moved / chip.memory_rate,
        links=sent / machine.link_rate,
    )


def estimated_collectives(job: Job) -> list[Collective]:
    """What a step sends, by arithmetic alone.

    Every micro-batch gathers the weights for the forward and the backward pass, and
    sums their gradients, which XLA does by all-reduce; a tensor axis sums activations
    after attention and after the MLP, in both passes and where blocks are computed
    again. A teacher is one more forward pass.
    """
    c, mesh, size = job.model, job.mesh, _itemsize(job)
    found = []
    leaves = _layer_weights(job) * c.n_layers + 2 * c.d_model * c.vocab_size
    weights = leaves * size // mesh.tensor
    shards, replicas = mesh.fsdp, mesh.data * mesh.fsdp
    if shards > 1:
        payload = (2 + job.runs_teacher) * job.accumulate * weights
        found.append(_collective("all-gather", payload, shards, 1))
    sums = sent = 0.0
    if replicas > 1:
        sums += job.accumulate * weights
        sent += 2 * job.accumulate * weights * (replicas - 1) / replicas
    if mesh.tensor > 1:
        again = 2 if job.compute.remat == "block" else 0
        again += 2 * job.runs_teacher
        payload = (4 + again) * c.n_layers * _tokens(job) * c.d_model * size
        sums += payload
        sent += 2 * payload * (mesh.tensor - 1) / mesh.tensor
    if sums:
        found.append(
            Collective(kind="all-reduce", count=0, payload=int(sums), sent=sent)
        )
    return found


def _collective(kind: str, payload: int, n: int, factor: int) -> Collective:
    sent = factor * payload * (n - 1) / n
    return Collective(kind=kind, count=0, payload=payload, sent=sent)


def estimated_traffic(job: Job) -> float:
    """Bytes between a device's main memory and its chip in a step, by arithmetic.

    Its passes (forward, again, backward; a teacher's forward) read what they multiply
    and write the result; the optimizer reads weights, gradients, moments and masks and
    writes three.
    """
    c, size, tensor = job.model, _itemsize(job), job.mesh.tensor
    passes = (3 if job.compute.remat == "block" else 2) + job.runs_teacher
    weights = 2 * passes * _layer_weights(job) * c.n_layers * size / tensor
    query, key = c.n_heads * c.head_width, c.kv_heads * c.head_width
    wide = 2 * query + 4 * key + 6 * c.d_ff
    activations = 2 * passes * _tokens(job) * c.n_layers * size
    activations *= 12 * c.d_model + wide / tensor
    if job.compute.attention == "scores":
        scores = job.tokens // (job.mesh.data * job.mesh.fsdp) * job.seq_len
        activations += 12.0 * passes * c.n_layers * scores * c.n_heads / tensor
    whole = _layer_weights(job) * c.n_layers + 2 * c.d_model * c.vocab_size
    update = 32 * whole / (job.mesh.fsdp * tensor)
    return job.accumulate * weights + activations + update


def _tokens(job: Job) -> int:
    """Of a step on one device."""
    return job.accumulate * job.rows * job.seq_len


def _layer_weights(job: Job) -> int:
    c = job.model
    heads = 2 * (c.n_heads + c.kv_heads) * c.head_width
    return c.d_model * (heads + 3 * c.d_ff)


def _itemsize(job: Job) -> int:
    return jnp.dtype(job.compute.jax_dtype).itemsize
