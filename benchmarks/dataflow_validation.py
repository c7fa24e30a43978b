"""Every published point about sparsity on weight-streaming wafers, beside the model's.

    python benchmarks/dataflow_validation.py [--json=FILE]

prints the tables of docs/dataflow.md in two minutes. A point is `reproduced` when
the model with its central constants is within 10 % of it, `in range` when only the
constants' ranges reach it, else `NOT reproduced`; claims without a number say what the
model finds, and points that cannot be compared say why.

Multi-layer perceptrons of GPT-3 have two matrices of 4 d x d; as Llama's three they are
8/3 d wide, with as many weights. A causal context of 2 S costs what attention of S
without a causal limit does.
"""

import argparse
import dataclasses
import json

from sparse_jax import dataflow
from sparse_jax.dataflow.products import product_cost
from sparse_jax.dataflow.sweep import describe
from sparse_jax.models import LlamaConfig, sizes
from sparse_jax.report.dataflow_tables import constants_table
from sparse_jax.report.markdown import table

SPARSITIES = ("0.5", "0.7", "0.75", "0.9")
EXTREME = (*SPARSITIES, "0.99", "0.999")
WIDTHS = (1024, 2048, 4096, 8192, 12_288)


def gpt3(width: int, layers: int, heads: int, context: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=50_257,
        d_model=width,
        d_ff=round(8 * width / 3),
        n_layers=layers,
        n_heads=heads,
        max_seq_len=context,
    )


def flop_points() -> list[dict]:
    """Reductions of arithmetic: the accounting, without a machine."""
    rows = []
    for name, model, mode, sparsity, published, what in (
        ("SPDF, arXiv 2303.10464", gpt3(2048, 24, 16, 4096), "training", 0.75, 2.5,
         "GPT-3 1.3B, 75 %: fewer pretraining flops"),
        ("iterative pruning, Cerebras blog", gpt3(2048, 24, 16, 4096), "prefill",
         0.838, 3.0, "GPT-3 1.3B, 83.8 %: fewer inference flops"),
    ):  # fmt: skip
        found = []
        for context in (2048, 4096):
            work = dataflow.Workload(model=model, batch=1, context=context, mode=mode)
            # Every token of a text that is scored needs its logits.
            whole = dataclasses.replace(work, mode="training")
            found.append(whole.ideal_speedup(1 - sparsity))
        causal, full = found
        rows.append(
            point(
                f"{what} (attention in full; {causal:.2f}x if causal)",
                name, published, full, None,
            )
        )  # fmt: skip
    work = dataflow.Workload(model=gpt3(4096, 32, 32, 4096), batch=1, context=4096)
    saved = 1 - 1 / work.ideal_speedup(0.1)
    rows.append(
        claim(
            "GPT-3 6.7B, 90 %, then dense: 64 % fewer pretraining flops",
            "vSPDF, Cerebras blog",
            f"a sparse token saves {100 * saved:.0f} %, so {64 / saved:.0f} % of the "
            "tokens would have to be sparse; the mix is not published",
        )
    )
    return rows


def simulated_points(machine: dataflow.Machine) -> tuple[list[dict], dict]:
    """What a machine gains: Llama-2-7B, and one wide matrix."""
    llama = run(machine, sizes.get("llama2_7b"), SPARSITIES)
    wide = run(machine, single(12_288), SPARSITIES)
    seventy, ninety = llama["rows"][1], wide["rows"][3]
    ranges = llama["sensitivity"]["ranges"][1]
    rows = [
        claim(
            "Llama-2-7B, 70 %: training on CS-3 follows the theoretical curve closely",
            "arXiv 2405.03594 (abstract; no number)",
            f"matrices {seventy['matrices']:.2f}x of {seventy['ideal']:.2f} "
            f"({span(ranges, 'matrices')}), step {seventy['step']:.2f}x of "
            f"{seventy['step_ideal']:.2f} ({span(ranges, 'step')}): "
            + close(seventy["matrices_efficiency"], ranges, seventy),
        ),
        point(
            "up to 8x from unstructured sparsity (at 90 %, a 12,288-wide matrix)",
            "CS-3 launch coverage",
            8.0,
            ninety["matrices"],
            wide["sensitivity"]["ranges"][3],
        ),
    ]
    return rows, {"llama2_7b": llama, "wide": wide}


def close(efficiency: float, ranges: dict, row: dict) -> str:
    """Whether a speed-up within 10 % of its ideal comes out, or only may."""
    if efficiency >= 0.9:
        return "reproduced"
    reach = ranges["most"]["matrices"] >= 0.9 * row["matrices_ideal"]
    return "in range only" if reach else "NOT reproduced"


def width_points(rows: dict[int, list[dict]]) -> list[dict]:
    """Claims of the abstract of arXiv 2604.27985, on a third party's CS-3 kernels."""
    source = "arXiv 2604.27985 (abstract)"
    ninety = [f"{rows[width][3]['matrices']:.2f}x at {width:,}" for width in WIDTHS]
    last, most = (rows[4096][index]["matrices"] for index in (4, 5))
    forward, gradient = products(4096, 0.9)
    return [
        claim("gains grow with the matrix (90 %)", source, ", ".join(ninety)),
        claim(
            "beyond 99 % the gain over a CPU is lost",
            source,
            f"at 4,096 the gain over dense stops growing: {last:.1f}x at 99 %, "
            f"{most:.1f}x at 99.9 %: same direction, not comparable",
        ),
        claim(
            "products at given positions (SDDMM) gain 5 times less than products with "
            "a sparse matrix (SpMM), over a CPU",
            source,
            f"weight gradient at kept positions {gradient:.2f}x, forward "
            f"{forward:.2f}x over dense at 90 %: NOT reproduced, and not comparable",
        ),
        claim(
            "measured against theoretical speed-up, 12k x 12k, on CS-2",
            "Cerebras talks; no value found",
            "see the last row of the next table",
        ),
    ]


def products(width: int, sparsity: float) -> tuple[float, float]:
    """Speed-ups of the product forward and of the weight gradient, the link apart."""
    machine, found = dataflow.machine("cs3"), []
    work = dataflow.fit(machine, single(width))
    drawn = dataflow.DrawnMasks("uniform", sparsity)
    layout = dataflow.simulate(machine, work, drawn).layout
    for product in ("forward", "weight_gradient"):
        dense, sparse = (
            product_cost(machine, layout, product, masks.stream(0, work.matrices[0]))
            for masks in (dataflow.NoMasks(), drawn)
        )
        found.append(dense.seconds / sparse.seconds)
    return found[0], found[1]


def by_width(machine: dataflow.Machine, width: int) -> list[dict]:
    """The rows of a sweep over one square matrix."""
    return run(machine, single(width), EXTREME, uncertainty=False)["rows"]


def peak_points() -> list[dict]:
    """Arithmetic peaks from cores, lanes and clock."""
    rows = []
    for name, headline, cores in (("cs2", 62.5e15, 850e3), ("cs3", 125e15, 900e3)):
        machine = dataflow.machine(name)
        peak = 2 * cores * machine.lanes.value * machine.clock_hz.value
        text = (
            f"dense peak {peak / 1e15:.1f} PF; the headline is {headline / peak:.1f} "
            "times that: NOT a dense rate, sparsity is credited"
        )
        rows.append(claim(f"{headline / 1e15:g} PF FP16", f"press on {name}", text))
    return rows


def single(width: int) -> LlamaConfig:
    """A model of nothing but square matrices, nearly."""
    return LlamaConfig(
        vocab_size=1, d_model=width, d_ff=width, n_layers=1, n_heads=width // 128
    )


def run(machine, model, sparsities, uncertainty=True) -> dict:
    work = dataflow.fit(machine, model)
    masks = dataflow.drawn_masks("uniform", sparsities)
    return dataflow.sweep(machine, work, masks, uncertainty=uncertainty)


def span(ends: dict, part: str) -> str:
    return f"range {ends['least'][part]:.2f} - {ends['most'][part]:.2f}"


def point(what, source, published, found, ranges) -> dict:
    """A number beside the model's."""
    text = f"{found:.2f}x"
    verdict = "reproduced" if abs(found / published - 1) <= 0.1 else "NOT reproduced"
    if ranges:
        text += f" ({span(ranges, 'matrices')})"
        low, high = ranges["least"]["matrices"], ranges["most"]["matrices"]
        if verdict != "reproduced" and low <= published <= high:
            verdict = "in range only"
    return claim(what, source, f"{text}: {verdict}", f"{published:g}x")


def claim(what, source, model, published="") -> dict:
    return {"what": what, "source": source, "published": published, "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file to write the same numbers to")
    options = parser.parse_args()
    machine = dataflow.machine("cs3")
    simulated, numbers = simulated_points(machine)
    rows = {width: by_width(machine, width) for width in WIDTHS}
    points = [*peak_points(), *flop_points(), *simulated, *width_points(rows)]
    keys = ("what", "source", "published", "model")
    lines = [[row[key] for key in keys] for row in points]
    print(table(["published", "source", "number", "model"], lines, words=True))
    print("\nSpeed-up of one square matrix, trained, by its width:\n")
    cs2 = by_width(dataflow.machine("cs2"), WIDTHS[-1])
    found = [(f"{width:,} (cs3)", rows[width]) for width in WIDTHS]
    found.append((f"{WIDTHS[-1]:,} (cs2)", cs2))
    widths = [[name, *(f"{r['matrices']:.2f}" for r in part)] for name, part in found]
    widths.append(["ideal", *(f"{row['ideal']:.2f}" for row in cs2)])
    print(table(["width", *(f"{100 * float(s):g} %" for s in EXTREME)], widths))
    for name in dataflow.MACHINES:
        print(f"\nConstants of {name}:\n")
        constants = constants_table(describe(dataflow.machine(name)))
        print(table(*constants, words=True))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"points": points, "widths": widths, **numbers}, file, indent=2)


if __name__ == "__main__":
    main()
