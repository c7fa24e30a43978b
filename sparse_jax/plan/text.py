"""A plan as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_jax.report.text import count, duration, percent

GiB = 2**30


def show(plan: Mapping[str, Any]) -> str:
    """What `planning.plan` found, for people."""
    sections = (_head, _memory, _step, _collectives, _recipe, _options)
    return "\n\n".join(part for part in (section(plan) for section in sections) if part)


def _head(plan) -> str:
    machine, job, source = plan["machine"], plan["job"], plan["source"]
    chip = machine["chip"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in job["mesh"].items())
    compute = job["compute"]
    lines = [
        f"{count(job['weights'])} weights on {machine['name']}: "
        f"{machine['devices']} devices, each {chip['name']}, "
        f"{chip['flops'] / 1e12:.0f} Tflop/s, {chip['memory_rate'] / 1e9:.0f} GB/s, "
        f"links {machine['link_rate'] / 1e9:.0f} GB/s ({chip['source']})",
        f"mesh {mesh}; {job['batch_size']} x {job['seq_len']} = "
        f"{count(job['tokens'])} tokens a step, micro-batches: "
        f"{job['accumulate']}, rows of each on a device: {job['rows_per_device']}",
        f"{compute['dtype']}, {compute['attention']} attention, remat "
        f"{compute['remat']}, first moments {job['moment_dtype']}",
    ]
    if source["kind"] == "estimated":
        lines.append(f"ESTIMATED, not compiled: {source['reason']}")
        return "\n".join(lines)
    took, host = duration(source["compile_seconds"]), _gib(source["host_memory"])
    took += f" ({duration(source['compile_cpu_seconds'])} of CPU)"
    if plan["memory"]["compiled_arguments"] is None:
        lines.append(f"the compiler stopped after {took}, for want of memory")
    else:
        lines.append(
            f"compiled in {took} with {host} of host memory to "
            f"{source['instructions']} instructions; no involuntary rematerialization"
        )
    return "\n".join(lines)


def _memory(plan) -> str:
    memory = plan["memory"]
    parts = {
        "params": "float32 weights",
        "masks": "one byte a weight",
        "moments": "of the optimizer",
        "batch": "tokens and counters",
        "teacher": "frozen weights, or what is kept of its logits",
        "gradients": "of the weights",
        "activations": "kept for the backward pass",
        "working": "gathered weights, a block, the loss",
    }
    if not memory["teacher"]:
        del parts["teacher"]
    rows = [(name, _gib(memory[name]), note) for name, note in parts.items()]
    verdict = "fits" if memory["fits"] else "DOES NOT FIT"
    rows.append(("total", _gib(memory["total"]), f"of {_gib(memory['available'])}"))
    split = "XLA's temporaries are the last three" if memory["compiled"] else "estimate"
    return f"memory of a device: {verdict} ({split})\n{_table(rows)}"


def _step(plan) -> str:
    step, seconds = plan["step"], plan["step"]["seconds"]
    low, high = step["tokens_per_second"]
    worst, best = step["utilisation"]
    again = step["executed_flops"] / step["model_flops"]
    rows = [
        (
            "compute",
            duration(seconds["compute"]),
            f"{count(step['executed_flops'])} flop, {again:.2f} x the model's",
        ),
        (
            "memory",
            duration(seconds["memory"]),
            f"{count(step['moved_bytes'])} bytes a device",
        ),
        (
            "links",
            duration(seconds["links"]),
            f"{count(sum(c['sent'] for c in plan['collectives']))} bytes a device",
        ),
    ]
    return (
        f"time of a step, limited by {step['limit']}\n{_table(rows)}\n"
        f"  {duration(step['best_seconds'])} if all of it overlaps, "
        f"{duration(step['worst_seconds'])} if nothing does: "
        f"{count(low)} to {count(high)} tokens/s, "
        f"model flops utilisation at most {percent(worst)} to {percent(best)}"
    )


def _collectives(plan) -> str:
    rows = [
        (
            c["kind"],
            _gib(c["payload"]),
            f"{_gib(c['sent'])} sent" + (f", {c['count']} times" if c["count"] else ""),
        )
        for c in plan["collectives"]
    ]
    if not rows:
        return "collectives of a step: none"
    loops = plan["loops_of_unknown_length"]
    note = f"; {loops} loops of unknown length counted as one run" if loops else ""
    return f"collectives of a step on a device{note}\n{_table(rows)}"


def _recipe(plan) -> str:
    recipe = plan["recipe"]
    rows = [
        (name, f"{stage['steps']} steps", _days(stage["days"], stage["tokens"]))
        for name, stage in recipe["stages"].items()
    ]
    rows.append(("all stages", "", _days(recipe["days"], recipe["tokens"])))
    return f"training of the recipe\n{_table(rows)}"


def _days(days: Sequence[float], tokens: int) -> str:
    return f"{count(tokens)} tokens, {days[0]:.1f} to {days[1]:.1f} days"


def _options(plan) -> str:
    fits = plan["memory"]["fits"]
    options = [o for o in plan["options"] if o["fits"]]
    if fits:
        # What is slower helps only a job that does not fit.
        now = plan["step"]["estimated_seconds"]  # an estimate, as theirs are
        options = [o for o in options if o["seconds"] < 0.97 * now]
        title = "faster, by estimate"
    else:
        title = "what would fit, by estimate"
        if not options:
            return f"{title}: none of the settings tried; use more devices"
    rows = [(o["change"], _gib(o["memory"]), duration(o["seconds"])) for o in options]
    return f"{title}\n{_table(rows)}" if rows else ""


def _gib(size: int | float) -> str:
    return f"{size / GiB:.2f} GiB"


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    first = max(len(row[0]) for row in rows)
    second = max(len(row[1]) for row in rows)
    return "\n".join(f"  {a:{first}}  {b:>{second}}  {c}".rstrip() for a, b, c in rows)
