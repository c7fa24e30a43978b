"""Loss beside bits and speed: every storage type on models with the zeros it is for.

    python benchmarks/format_quality.py --models=DIR,DIR --calibration=train.txt \
        --data=test.txt [--json=FILE]
    python benchmarks/format_quality.py --models=runs/sparse70/trained_70 \
        --patterns=own --calibration=embedded:code --data=embedded:code

A model is pruned once to each pattern (SparseGPT on the calibration text, no training
after it) and then stored in every type that holds these zeros; `own` stores it as it
is, with the zeros that it has. Matrices whose inputs a pattern does not divide are
pruned unstructured to the same sparsity; those that a type cannot hold go to the best
type that can, named at the end of the row. Quantised types round to nearest. A row:

    bits       per weight of the matrices in the layers, scales and indices included
    file KB    the packed file: these matrices, embedding and head, tokenizer, header
    loss       nats per token of the packed model, computed by its kernels
    - masks    its loss less that of the same pruned model in dense_float32
    - dense    its loss less that of the model before it was pruned
    bits/byte  of the text
    decode/s   tokens written per second; in a small model dispatch is most of the time
    kernel     speed-up over dense_float32 of one product with a 4096 x 4096 matrix
               (`--kernel_size`) with as many such zeros, uniform, weights from memory

`b` marks rows that no other row of the model beats in both bits and loss, `s` those
that none beats in both the kernel's speed and loss: only these are worth choosing from.
"""

import argparse
import json
import pathlib
import sys
import tempfile

import numpy as np
import tqdm
from rotation import Speedups

from sparse_jax import data, evaluate, host, infer, io, kernels, prune
from sparse_jax.infer import choose, measure
from sparse_jax.models import LlamaConfig
from sparse_jax.sparsity import Unstructured, parse
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

PATTERNS = "own,8:16,5:16,group:16@0.5,group:16@0.7,unstructured@0.5,unstructured@0.7"
OWN = "own"
DOWN = "layers/mlp/down/kernel"
BASE = "dense_float32"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, help="directories, comma-separated")
    parser.add_argument("--data", required=True, help="held-out text")
    parser.add_argument("--calibration", required=True, help="training text")
    parser.add_argument("--patterns", default=PATTERNS)
    parser.add_argument("--types", help="comma-separated; all that fit by default")
    parser.add_argument("--solver", default="sparsegpt")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sample_length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the calibration")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=50_000, help="of --data, at most")
    parser.add_argument("--written", type=int, default=64, help="tokens for decode/s")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--kernel_size", type=int, default=4096, help="0 leaves it out")
    parser.add_argument("--megabytes", type=int, default=128, help="as cpu_kernels.py")
    parser.add_argument("--json")
    return parser.parse_args()


def prune_config(pattern: str, model: LlamaConfig, arguments) -> prune.PruneConfig:
    """A run's configuration, with a rule for `down` where the pattern needs one."""
    rules = prune.PruneConfig().rules
    chosen = parse(pattern)
    try:
        chosen.check((model.d_model, model.d_ff))
    except InputError:
        rules = ((DOWN, f"unstructured@{chosen.sparsity}"), *rules)
    return prune.PruneConfig(
        solver=arguments.solver,
        pattern=pattern,
        samples=arguments.samples,
        sample_length=arguments.sample_length,
        seed=arguments.seed,
        rules=rules,
    )


def types_for(masks) -> list[str]:
    """The types that a model's zeros are for, the dense ones for comparison."""
    kinds = [name for name in kernels.FORMATS if name.startswith("dense_")]
    if masks is None:
        return kinds
    zeros = [
        choose.count_zeros(np.ascontiguousarray(np.asarray(kept_IO).T))
        for mask_LIO in leaf_paths(masks).values()
        if mask_LIO is not None and mask_LIO.shape[1] % choose.GROUP == 0
        for kept_IO in mask_LIO
    ]
    families = ["dense_", "bitmask_", "ell_"]
    families += ["n16_"] * all(found.balanced for found in zeros)
    families += ["group_"] * all(found.whole_groups for found in zeros)
    return [name for name in kernels.FORMATS if name.startswith(tuple(families))]


def packed_rows(directory, kinds, text, arguments, bandwidth) -> list[dict]:
    """Packs a directory in every type; what each takes, loses and gains."""
    reader, rows = io.open_blocks(directory), []
    window = min(arguments.window, reader.config.context)
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.packed"
            settings = infer.PackConfig(format=kind)
            report = infer.pack_checkpoint(reader, path, settings)
            model = io.read_packed(path)
            found = evaluate.evaluate_blocks(
                io.PackedBlocks(model), *text, window=window
            )
            speed = measure.measure(
                model,
                kind,
                bandwidth,
                prompt_tokens=min(64, reader.config.context // 4),
                tokens=min(arguments.written, reader.config.context // 2),
                repeats=arguments.repeats,
            )
        matrices = report["totals"]["packed matrices"]
        moved = {
            row["path"]: f"{row['format']} ({row['note']})"
            for row in report["tensors"]
            if row["part"] == "packed matrices" and row["format"] != kind
        }
        rows.append(
            {
                "type": kind,
                "sparsity": matrices["sparsity"],
                "bits_per_weight": matrices["bits_per_weight"],
                "matrix_bytes": matrices["bytes_after"],
                "file_bytes": report["totals"]["file"]["bytes_after"],
                "loss": found.loss,
                "perplexity": found.perplexity,
                "bits_per_byte": found.bits_per_byte,
                "evaluated_tokens": found.tokens,
                "decode": speed.decode,
                "prefill": speed.prefill,
                "elsewhere": moved,
            }
        )
    return rows


def measure_model(directory, arguments, speedups: Speedups, bandwidth) -> list[dict]:
    """One row for every pattern and every type that holds it."""
    model = io.resolve(directory)
    if model.params is None or model.tokenizer is None:
        raise InputError(f"{directory}: needs weights and a tokenizer")
    ids, nbytes = data.stream_from_path(arguments.data, model.tokenizer)
    text = ids[: arguments.tokens], nbytes[: arguments.tokens]
    calibration, _ = data.stream_from_path(
        arguments.calibration, model.tokenizer, split="train", limit=4_000_000
    )
    tokens = prune.sample_windows(
        calibration, arguments.samples, arguments.sample_length, arguments.seed
    )
    window = min(arguments.window, model.config.context)
    before = evaluate.evaluate(model.params, model.config, *text, window=window)
    wanted, rows = arguments.types, []
    progress = tqdm.tqdm(arguments.patterns.split(","), desc=directory, disable=None)
    for pattern in progress:
        params, masks = model.params, model.masks
        if pattern != OWN:
            config = prune_config(pattern, model.config, arguments)
            pruned = prune.prune(params, masks, tokens, model.config, config)
            params, masks = pruned.params, pruned.masks
        kinds = types_for(masks)
        if wanted:
            kinds = [kind for kind in kinds if kind in wanted.split(",")]
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder) / "pruned"
            io.save(
                place,
                params,
                model.config,
                masks=masks,
                tokenizer_files=model.tokenizer.files,
            )
            found = packed_rows(place, [BASE, *kinds], text, arguments, bandwidth)
        base, *found = found
        for row in found:
            shape = Unstructured(row["sparsity"]) if pattern == OWN else parse(pattern)
            row |= {
                "model": directory,
                "pattern": pattern,
                "loss_less_same_masks": row["loss"] - base["loss"],
                "loss_less_dense": row["loss"] - before.loss,
                "kernel_speedup": speedups.of(row["type"], shape),
            }
        rows += found
    mark_best(rows)
    return rows


def mark_best(rows: list[dict]) -> None:
    """Sets best_at_bits and best_at_speed: no other row is better in both."""

    def unbeaten(row: dict, cost) -> bool:
        mine = cost(row), row["loss"]
        return not any(
            cost(other) <= mine[0]
            and other["loss"] <= mine[1]
            and (cost(other), other["loss"]) != mine
            for other in rows
        )

    for row in rows:
        timed = row["kernel_speedup"] is not None
        row["best_at_bits"] = unbeaten(row, lambda r: r["bits_per_weight"])
        row["best_at_speed"] = timed and unbeaten(row, lambda r: -r["kernel_speedup"])


def table(rows: list[dict]) -> str:
    """The rows of one model."""
    lines = [
        rows[0]["model"],
        f"{'pattern':<17}{'type':<18}{'bits':>7}{'file KB':>9}{'loss':>9}"
        f"{'- masks':>9}{'- dense':>9}{'bits/byte':>10}{'decode/s':>9}{'kernel':>8}",
    ]
    for row in rows:
        speedup = row["kernel_speedup"]
        marks = "b" * row["best_at_bits"] + "s" * row["best_at_speed"]
        moved = "; ".join(
            f"{path.split('/')[-2]}: {kind}" for path, kind in row["elsewhere"].items()
        )
        lines.append(
            f"{row['pattern']:<17}{row['type']:<18}{row['bits_per_weight']:>7.2f}"
            f"{row['file_bytes'] / 1e3:>9.1f}{row['loss']:>9.4f}"
            f"{row['loss_less_same_masks']:>+9.4f}{row['loss_less_dense']:>+9.4f}"
            f"{row['bits_per_byte']:>10.4f}{row['decode']:>9.0f}"
            f"{'' if speedup is None else f'{speedup:.1f}x':>8} {marks:<2} {moved}"
        )
    lines.append(
        "b: no other row has both fewer bits and less loss; s: none has both a faster "
        "kernel and less loss"
    )
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    arguments = parse_arguments()
    host.keep_freed_memory()  # as the launchers do
    sizes = arguments.kernel_size, arguments.megabytes, arguments.repeats
    speedups, rows = Speedups(*sizes), []
    bandwidth = measure.read_bandwidth()
    for directory in arguments.models.split(","):
        try:
            found = measure_model(directory, arguments, speedups, bandwidth)
        except InputError as error:
            sys.exit(f"error: {error}")
        print(table(found), end="\n\n", flush=True)
        rows += found
    if arguments.json:
        report = {"command": sys.argv, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
