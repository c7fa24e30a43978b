"""Time of a product with a packed matrix on the CPU, for every storage type.

    python benchmarks/cpu_kernels.py --json=cpu_kernels.json
    python benchmarks/cpu_kernels.py --types=n16_int8,bitmask_bfloat16 \
        --sizes=4096x4096 --threads=1 --repeats=9            # about a minute
    python benchmarks/cpu_kernels.py --batch=64 --sizes=4096x4096     # prefill
    python benchmarks/cpu_kernels.py --mask=sparsegpt --sizes=4096x4096 \
        --types=bitmask_float32,bitmask_bfloat16,ell_int8

Called through JAX: float32 activations in, float32 results out, quantisation of the
activations included. All copies of a matrix, together `--megabytes` (at least four
times the last-level cache), are worked through in turn, so that weights come from
memory, as they do when a model decodes:

    milliseconds    per product, in one jitted chain of all copies; best of `--repeats`
    dispatch        the same, one jitted call for every product, launched from Python
    limit           bytes of the matrix / read bandwidth, the highest of a plain read
                    loop's and dense_float32's in this run
    share_of_limit  limit / milliseconds

`speedup_vs_dense_float32` is against this package's own dense_float32 in the same run,
measured again beside every type and every peer, because the machine's speed drifts.
Peers (JAX; torch and ggml where they are installed: `pip install '.[peers]'`) stand in
rows of their own, see `kernel_peers.py`.

Masks are uniform, or with `--mask=sparsegpt` those of SparseGPT on a random layer with
correlated inputs. Sparse types are measured with 50, 70 and 80 % zeros, N:16 types as
8:16, 5:16 and 4:16; or at `--sparsities`, N:16 types with the nearest N. `--threads=1`
restricts the process to one CPU; the default measures one thread and all, each in a
process of its own.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

SPARSITIES = (0.5, 0.7, 0.8)
N16 = (0.5, 0.6875, 0.75)
PEERS = "jax,torch,ggml"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--sizes", default="4096x4096,11008x4096,4096x11008")
    parser.add_argument("--sparsities", help="0.5,0.7,0.8 by default")
    parser.add_argument("--threads", type=int, help="1 or all of them; default both")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--mask", choices=("uniform", "sparsegpt"), default="uniform")
    parser.add_argument("--masks", help="folder that keeps SparseGPT's masks for runs")
    parser.add_argument("--implementation", default="native")
    parser.add_argument("--peers", default=PEERS, help="empty: none")
    parser.add_argument("--json")
    return parser.parse_args()


def sparsities(name: str, arguments) -> tuple[float, ...]:
    """Those that a type is measured at; of N:16 types, N / 16 and none twice."""
    if name.startswith("dense"):
        return (0.0,)
    if arguments.sparsities is None:
        return N16 if name.startswith("n16") else SPARSITIES
    wanted = tuple(float(text) for text in arguments.sparsities.split(","))
    if name.startswith("n16"):
        return tuple(sorted({1 - round(16 * (1 - s)) / 16 for s in wanted}))
    return wanted


def pattern_text(name: str, sparsity: float) -> str:
    """The pattern that a type is for."""
    if name.startswith("n16"):
        return f"{round(16 * (1 - sparsity))}:16"
    shape = "group:16" if name.startswith("group") else "unstructured"
    return f"{shape}@{sparsity:g}"


def sparsegpt_mask(pattern, w_OI, folder):
    """SparseGPT's mask for inputs that 64 random factors correlate.

    It is kept in a file, as types, threads and batches share it.
    """
    import numpy as np

    from sparse_jax.solvers import solve
    from sparse_jax.sparsity import parse

    n_out, n_in = w_OI.shape
    name = f"{n_out}x{n_in}_{pattern}".replace(":", "-")
    path = pathlib.Path(folder) / f"{name}.npy"
    if not path.exists():
        print(f"  SparseGPT {pattern}, {n_out} x {n_in} ...", file=sys.stderr)
        rng = np.random.default_rng(2)
        factors_FI = rng.standard_normal((64, n_in), np.float32)
        strength_F1 = 1 / np.arange(1, 65, dtype=np.float32)[:, None]
        H_II = factors_FI.T @ (strength_F1 * factors_FI)
        H_II += np.eye(n_in, dtype=np.float32)
        solution = solve("sparsegpt", w_OI, H_II, parse(pattern))
        np.save(path, np.packbits(np.asarray(solution.mask), axis=1))
    return np.unpackbits(np.load(path), axis=1, count=n_in).astype(bool)


def own_types(arguments, w_OI, x_BI):
    """(type, sparsity, bytes, rotation) of this package's types."""
    import jax
    import numpy as np
    from rotation import Rotation

    from sparse_jax import infer, kernels

    def product(x_BI, leaf):
        return kernels.dot(x_BI, leaf, implementation=arguments.implementation)

    rng = np.random.default_rng(0)
    wanted = arguments.types.split(",") if arguments.types else list(kernels.FORMATS)
    for name in filter(None, wanted):
        for sparsity in sparsities(name, arguments):
            mask_OI = None
            if sparsity and arguments.mask == "sparsegpt":
                pattern = pattern_text(name, sparsity)
                mask_OI = sparsegpt_mask(pattern, w_OI, arguments.masks)
            elif sparsity:
                mask_OI = infer.random_mask(rng, w_OI.shape, name, sparsity)
            packed = kernels.pack(name, w_OI, mask_OI)
            leaf = jax.tree.map(jax.numpy.asarray, packed)
            yield (
                name,
                sparsity,
                packed.nbytes,
                Rotation(product, leaf, packed.nbytes, x_BI, arguments.megabytes),
            )


def run(arguments) -> list[dict]:
    import jax
    import kernel_peers
    import numpy as np
    from rotation import Rotation, measure

    from sparse_jax import kernels
    from sparse_jax.kernels import native

    threads = len(os.sched_getaffinity(0))
    rows = []
    for size in arguments.sizes.split(","):
        shape = tuple(int(n) for n in size.split("x"))
        rng = np.random.default_rng(1)
        w_OI = rng.standard_normal(shape, np.float32)
        x_BI = rng.standard_normal((arguments.batch, shape[1]), np.float32)
        x_BI = jax.numpy.asarray(x_BI)
        dense = kernels.pack("dense_float32", w_OI)
        leaf = jax.tree.map(jax.numpy.asarray, dense)
        baseline = Rotation(kernels.dot, leaf, dense.nbytes, x_BI, arguments.megabytes)
        bandwidth = native.read_bandwidth(arguments.megabytes << 20, arguments.repeats)
        found = []

        def add(cases, baseline=baseline, found=found):
            for name, sparsity, nbytes, rotation in cases:
                times = measure(rotation, baseline, arguments.repeats)
                found.append((name, sparsity, nbytes, *times))
                print(f"  {name} {sparsity:g} {1e3 * times[0]:.3f} ms", file=sys.stderr)

        add(own_types(arguments, w_OI, x_BI))
        add(kernel_peers.peers(arguments, w_OI, np.asarray(x_BI)))
        bandwidth = max(bandwidth, *(dense.nbytes / base for *_, base in found))
        rows += [row(times, shape, threads, bandwidth, arguments) for times in found]
    return rows


def row(found, shape, threads, bandwidth, arguments) -> dict:
    name, sparsity, nbytes, chain, dispatch, base = found
    return {
        "type": name,
        "sparsity": sparsity,
        "mask": arguments.mask if sparsity else "none",
        "rows": shape[0],
        "cols": shape[1],
        "threads": threads,
        "batch": arguments.batch,
        "milliseconds": 1e3 * chain,
        "dispatch_milliseconds": 1e3 * dispatch,
        "bits_per_weight": 8 * nbytes / (shape[0] * shape[1]),
        "limit_milliseconds": 1e3 * nbytes / bandwidth,
        "share_of_limit": nbytes / bandwidth / chain,
        "speedup_vs_dense_float32": base / chain,
        "read_gigabytes_per_second": bandwidth / 1e9,
    }


def show(rows: list[dict]) -> None:
    header = ("type", "sparsity", "rows", "cols", "threads", "ms", "dispatch", "bits")
    print(
        "{:20s} {:>8s} {:>6s} {:>6s} {:>7s} {:>7s} {:>8s} {:>6s}".format(*header),
        end="",
    )
    print(f" {'limit':>7s} {'share':>6s} {'vs dense':>8s}")
    for r in rows:
        print(
            f"{r['type']:20s} {r['sparsity']:8.4g} {r['rows']:6d} {r['cols']:6d} "
            f"{r['threads']:7d} {r['milliseconds']:7.3f} "
            f"{r['dispatch_milliseconds']:8.3f} {r['bits_per_weight']:6.2f} "
            f"{r['limit_milliseconds']:7.3f} {r['share_of_limit']:6.0%} "
            f"{r['speedup_vs_dense_float32']:7.2f}x"
        )


def run_elsewhere(threads: int, masks: str) -> list[dict]:
    """The same command in a process with that many CPUs: XLA's pool is sized once."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        options = [f"--threads={threads}", f"--json={path}", f"--masks={masks}"]
        command = [sys.executable, *sys.argv, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["rows"]


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        arguments.masks = arguments.masks or folder
        if arguments.threads is None and len(cpus) > 1:
            rows = []
            for threads in (1, len(cpus)):
                rows += run_elsewhere(threads, arguments.masks)
        else:
            if arguments.threads is not None:
                os.sched_setaffinity(0, cpus[-arguments.threads :])
            rows = run(arguments)
    show(rows)
    if arguments.json:
        report = {"command": sys.argv, "rows": rows}
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    main()
