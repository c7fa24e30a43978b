"""How many sequences the machine's SRAM holds.

    values activation_bytes <= elements (SRAM - program and buffers - partial sums)

`Workload.resident_values` counts the values. They are taken to spread evenly: the
slices of different layers can begin at different elements, so that their remainders
even out.
"""

import dataclasses

from sparse_jax.dataflow.machine import Machine
from sparse_jax.dataflow.workload import Mode, WeightGradient, Workload
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError


def room(machine: Machine) -> float:
    """Bytes of SRAM for activations."""
    reserved = machine.sram_reserved_bytes.value + machine.partial_sum_sram_bytes.value
    elements = machine.grid_rows.value * machine.grid_columns.value
    return float(elements * (machine.sram_bytes.value - reserved))


def resident_bytes(machine: Machine, work: Workload) -> float:
    """Bytes of the activations that a step keeps at its fullest moment."""
    return float(work.resident_values * machine.activation_bytes.value)


def largest_batch(machine: Machine, work: Workload) -> int:
    """The largest number of sequences that fits, 0 where not even one does.

    Args:
      machine: the machine.
      work: its batch is ignored.

    Example:
      >>> from sparse_jax.dataflow import machine
      >>> from sparse_jax.models import sizes
      >>> work = Workload(model=sizes.get("llama2_7b"), batch=1, context=4096)
      >>> largest_batch(machine("cs3"), work)
      20
    """
    one = resident_bytes(machine, dataclasses.replace(work, batch=1))
    return int(room(machine) // one)  # activations are proportional to the batch


def fit(
    machine: Machine,
    model: LlamaConfig,
    *,
    batch: int | None = None,
    context: int | None = None,
    mode: Mode = "training",
    weight_gradient: WeightGradient = "kept",
    recompute: bool = False,
) -> Workload:
    """A workload that fits the machine.

    Args:
      machine: the machine.
      model: architecture.
      batch: sequences; None = as many as fit.
      context: tokens of a sequence; None = as many as the model allows, at most 4096.
      mode: see `Workload`, as what follows.
      weight_gradient: at which positions.
      recompute: whether to count a second forward pass.

    Raises:
      InputError: the batch does not fit, or the model has no such context.

    Example:
      >>> from sparse_jax.dataflow import machine
      >>> from sparse_jax.models import sizes
      >>> fit(machine("cs3"), sizes.get("llama2_7b")).tokens
      81920
    """
    work = Workload(
        model=model,
        batch=1 if batch is None else batch,
        context=min(model.context, 4096) if context is None else context,
        mode=mode,
        weight_gradient=weight_gradient,
        recompute=recompute,
    )
    if batch is None:
        most = largest_batch(machine, work)
        work = dataclasses.replace(work, batch=max(1, most))
    check(machine, work)
    return work


def check(machine: Machine, work: Workload) -> None:
    """Raises InputError, with what would fit, when the activations do not."""
    found, limit = resident_bytes(machine, work), room(machine)
    if found <= limit:
        return
    most = largest_batch(machine, work)
    advice = f"at most {most} sequences fit"
    if not most:
        one = dataclasses.replace(work, batch=1)
        # Logarithmic, so cheap; memory grows with the context.
        low, high = 0, work.context
        while high - low > 1:
            middle = (low + high) // 2
            shorter = dataclasses.replace(one, context=middle)
            if resident_bytes(machine, shorter) <= limit:
                low = middle
            else:
                high = middle
        advice = f"not even one fits; choose a context of at most {low}"
    raise InputError(
        f"batch: the activations of {work.batch} x {work.context} tokens "
        f"take {found / 1e9:.3g} GB, {found / limit:.3g} times the "
        f"{limit / 1e9:.3g} GB that {machine.name} has for them; {advice}"
    )
