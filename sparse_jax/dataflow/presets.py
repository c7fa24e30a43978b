"""The machines that have a name, with the source of every number.

What the maker publishes is little: sizes, lanes and bandwidths. The overheads of a
single weight and of a row are published nowhere; they are assumed, with ranges that
the reports carry through. PB, PF: 1e15.
"""

from sparse_jax.dataflow.machine import Constant, Machine
from sparse_jax.types import InputError

_HC34 = "Hot Chips 34 talk (2022), as reported by ServeTheHome"


def _published(value, unit, source, low=None, high=None) -> Constant:
    low, high = value if low is None else low, value if high is None else high
    return Constant(
        value=value, unit=unit, low=low, high=high, status="published", source=source
    )


def _derived(value, unit, low, high, source) -> Constant:
    return Constant(
        value=value, unit=unit, low=low, high=high, status="derived", source=source
    )


def _assumed(value, unit, low, high, source) -> Constant:
    return Constant(
        value=value, unit=unit, low=low, high=high, status="assumed", source=source
    )


_LINK = "12 x 100 GbE, 1.2 Tb/s off the wafer (press on WSE-2 and WSE-3)"

_SHARED = {
    "sram_bytes": _published(48 * 1024, "bytes", "48 KB per core, Hot Chips 34"),
    "sram_reserved_bytes": _assumed(
        8 * 1024, "bytes", 4 * 1024, 16 * 1024, "program, stack and stream buffers"
    ),
    "partial_sum_sram_bytes": _assumed(
        2 * 1024, "bytes", 1024, 8 * 1024, "a small share of 48 KB"
    ),
    "value_bytes": _published(2, "bytes", "FP16 arithmetic, Cerebras blog (2021)"),
    "index_bytes": _assumed(
        2,
        "bytes",
        1,
        2,
        "value and index fill a 32-bit word; format unpublished",
    ),
    "activation_bytes": _published(2, "bytes", "FP16 arithmetic, Cerebras blog (2021)"),
    "partial_sum_bytes": _assumed(
        4, "bytes", 2, 4, "sums are kept in FP32, unless FP16 is enough"
    ),
    "stream_in_bytes_per_s": _published(
        150e9, "bytes/s", _LINK + "; low: both directions share it", low=75e9
    ),
    "stream_out_bytes_per_s": _published(
        150e9, "bytes/s", _LINK + "; low: both directions share it", low=75e9
    ),
    "trigger_cycles": _assumed(
        1,
        "cycles",
        0,
        8,
        "full-rate AXPY is claimed for fine-grained sparsity, so it is small; "
        "high: a handful of instructions",
    ),
    "row_cycles": _assumed(
        8, "cycles", 0, 64, "one control word and a few instructions a row"
    ),
    "hop_cycles": _assumed(
        1,
        "cycles",
        0,
        8,
        "a word passes one router a cycle; low: columns run skewed, so that a sum "
        "arrives when it is needed; high: load, add and store",
    ),
    "dot_reduce_cycles": _assumed(
        4, "cycles", 0, 16, "adding the lanes pairwise, partly hidden by the next DOT"
    ),
    "rows_in_flight": _assumed(
        64,
        "rows",
        16,
        256,
        "queues, and partial_sum_sram_bytes limits it; low: with fewer, dense products "
        "wait for reductions, against the utilisation that is claimed",
    ),
    "dense_efficiency": _assumed(
        0.5, "of peak", 0.3, 0.9, "mlsysim's figure for dense work on this machine"
    ),
    "layer_latency_s": _assumed(
        3.5e-6,
        "s",
        0.0,
        3.5e-5,
        "in and out: twice across rows and columns at one element per cycle",
    ),
    "elementwise_cycles": _assumed(
        1, "cycles/vector", 0.5, 4, "an instruction a vector; exponentials take several"
    ),
    "system_hop_s": _assumed(1e-6, "s", 0.0, 1e-5, "one Ethernet switch"),
}

CS2 = Machine(
    name="cs2",
    grid_rows=_published(996, "elements", "SDK guide: fabric 757 wide, 996 high"),
    grid_columns=_published(757, "elements", "SDK guide: fabric 757 wide, 996 high"),
    clock_hz=_published(
        1.1e9, "Hz", _HC34 + "; low: timing examples of the public SDK", low=0.85e9
    ),
    lanes=_published(4, "lanes", "3.4 M FP16 units on 850,000 cores, Cerebras blog"),
    sram_bytes_per_cycle=_published(
        24.0,
        "bytes/cycle",
        _HC34 + ": 2 reads, 1 write of 64 bit; low: 20 PB/s",
        low=21.4,
    ),
    sram_bytes_per_token=_derived(
        6.0, "bytes", 2.0, 6.0, "x and y read, y written; low: y stays in the cache"
    ),
    row_vector_cycles=_assumed(
        1.0,
        "cycles/vector",
        0.0,
        2.0,
        "one add of the neighbour's sum; low: hidden; high: 32 bit a cycle on a link",
    ),
    **_SHARED,
)
"""WSE-2, 2021."""

CS3 = Machine(
    name="cs3",
    grid_rows=_published(1172, "elements", "ALCF guide: fabric 762 wide, 1172 high"),
    grid_columns=_published(762, "elements", "ALCF guide: fabric 762 wide, 1172 high"),
    clock_hz=_derived(
        1.085e9,
        "Hz",
        0.85e9,
        1.155e9,
        "125 PF with 8-fold sparsity credited, over 900,000 cores of 8 lanes; "
        "low: the public SDK's; high: WSE-2's and 5 %",
    ),
    lanes=_published(8, "lanes", "8-wide FP16 SIMD, Next Platform on WSE-3"),
    sram_bytes_per_cycle=_derived(
        21.5,
        "bytes/cycle",
        21.2,
        24.0,
        "21 PB/s over 900,000 cores; high: WSE-2's ports",
    ),
    sram_bytes_per_token=_assumed(
        2.0,
        "bytes",
        2.0,
        6.0,
        "only x is read and y stays in the cache, or 8 lanes would be no faster than "
        "WSE-2's 4; high: x and y read, y written",
    ),
    row_vector_cycles=_assumed(
        1.0,
        "cycles/vector",
        0.0,
        4.0,
        "one add of the neighbour's sum; low: hidden; high: 32 bit a cycle on a link",
    ),
    **_SHARED,
)
"""WSE-3, 2024."""

MACHINES = {m.name: m for m in (CS2, CS3)}


def machine(name: str) -> Machine:
    """The machine of that name.

    Raises:
      InputError: no such machine; the message lists them.

    Example:
      >>> cs3 = machine("cs3")
      >>> cs3.grid_rows.value * cs3.grid_columns.value
      893064
    """
    if name not in MACHINES:
        raise InputError(f"machine {name!r} is unknown; choose one of {list(MACHINES)}")
    return MACHINES[name]
