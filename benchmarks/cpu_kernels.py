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
measured again beside every type, because the machine's speed drifts. Peers (dense
float32 of JAX and, where installed, torch) stand in rows of their own. Masks are
uniform (`--mask=uniform`) or those of SparseGPT on a random layer with correlated
inputs (`--mask=sparsegpt`, minutes). `--threads=1` restricts the process to one CPU;
the default measures one thread and all, each in a process of its own.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

N16 = {0.5: 8, 0.6875: 5, 0.75: 4}
SPARSITIES = (0.5, 0.7, 0.8)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--sizes", default="4096x4096,11008x4096,4096x11008")
    parser.add_argument("--threads", type=int, help="1 or all of them; default both")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--mask", choices=("uniform", "sparsegpt"), default="uniform")
    parser.add_argument("--implementation", default="native")
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--json")
    return parser.parse_args()


def sparsities(name: str) -> tuple[float, ...]:
    if name.startswith("dense"):
        return (0.0,)
    return tuple(N16) if name.startswith("n16") else SPARSITIES


def sparsegpt_mask(name, w_OI, sparsity, rng):
    """The mask of SparseGPT for inputs that 64 random factors correlate."""
    import jax.numpy as jnp
    import numpy as np

    from sparse_jax.solvers import solve
    from sparse_jax.sparsity import parse

    n_in = w_OI.shape[1]
    factors = rng.standard_normal((64, n_in)).astype(np.float32)
    strength = 1 / np.arange(1, 65, dtype=np.float32)
    H_II = factors.T @ (strength[:, None] * factors) + np.eye(n_in, dtype=np.float32)
    if name.startswith("n16"):
        pattern = parse(f"{N16[sparsity]}:16")
    else:
        pattern = parse(
            "group:16" if name.startswith("group") else "unstructured", sparsity
        )
    solution = solve("sparsegpt", jnp.asarray(w_OI), jnp.asarray(H_II), pattern)
    return np.asarray(solution.mask)


class Rotation:
    """Copies of one matrix, larger together than the cache, and what runs over them."""

    def __init__(self, product, leaf, nbytes, x_BI, arguments):
        import jax

        n_copies = max(2, -(-(arguments.megabytes << 20) // nbytes))
        self.n = n_copies
        self.copies = [jax.tree.map(lambda a: a.copy(), leaf) for _ in range(n_copies)]
        self.x_BI = x_BI
        self.one = jax.jit(product)

        def chain(x_BI, copies):
            # Every product feeds the next one's input: they run one after the other.
            for copy in copies:
                y_BO = product(x_BI, copy)
                x_BI = x_BI + 1e-30 * y_BO[:, :1]
            return y_BO

        self.chain = jax.jit(chain)
        self.chain(x_BI, self.copies).block_until_ready()
        self.one(x_BI, self.copies[0]).block_until_ready()

    def time_chain(self) -> float:
        """Seconds for a product, all of them in one compiled function."""
        start = time.perf_counter()
        self.chain(self.x_BI, self.copies).block_until_ready()
        return (time.perf_counter() - start) / self.n

    def time_dispatch(self) -> float:
        """Seconds for a product that Python launches alone."""
        start = time.perf_counter()
        for copy in self.copies:
            self.one(self.x_BI, copy).block_until_ready()
        return (time.perf_counter() - start) / self.n


def jax_peers(shape):
    """Dense float32 and bfloat16 as JAX stores and multiplies them, [in, out]."""
    import jax.numpy as jnp
    import numpy as np

    w_IO = np.random.default_rng(0).standard_normal(shape[::-1]).astype(np.float32)
    yield "jax float32", jnp.asarray(w_IO), lambda x_BI, w_IO: x_BI @ w_IO


def time_torch(shape, arguments) -> list[tuple[str, float, int]]:
    """(name, best seconds, bytes) of torch's dense products, where it is installed."""
    try:
        import torch
    except ImportError:
        return []
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    found = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        w_OI = torch.randn(shape).to(dtype)
        nbytes = w_OI.numel() * w_OI.element_size()
        n_copies = max(2, -(-(arguments.megabytes << 20) // nbytes))
        copies = [w_OI.clone() for _ in range(n_copies)]
        x_BI = torch.randn(arguments.batch, shape[1]).to(dtype)
        best = float("inf")
        with torch.no_grad():
            for _ in range(arguments.repeats + 1):
                start = time.perf_counter()
                for copy in copies:
                    torch.nn.functional.linear(x_BI, copy)
                best = min(best, (time.perf_counter() - start) / n_copies)
        found.append((f"torch {name}", best, nbytes))
    return found


def measure(rotation, baseline, repeats) -> tuple[float, float, float]:
    """Best chain and dispatch times, and the baseline's best, taken in turn."""
    times = [
        (rotation.time_chain(), rotation.time_dispatch(), baseline.time_chain())
        for _ in range(repeats)
    ]
    return tuple(min(column) for column in zip(*times, strict=True))


def cases(arguments, shape):
    """(type, sparsity, leaf, product, bytes, bits per weight) of one matrix size."""
    import jax
    import numpy as np

    from sparse_jax import infer, kernels

    rng = np.random.default_rng(0)
    w_OI = rng.standard_normal(shape).astype(np.float32)

    def product(x_BI, leaf):
        return kernels.dot(x_BI, leaf, implementation=arguments.implementation)

    wanted = arguments.types.split(",") if arguments.types else list(kernels.FORMATS)
    for name in wanted:
        for sparsity in sparsities(name):
            mask_OI = None
            if sparsity and arguments.mask == "sparsegpt":
                mask_OI = sparsegpt_mask(name, w_OI, sparsity, rng)
            elif sparsity:
                mask_OI = infer.random_mask(rng, shape, name, sparsity)
            packed = kernels.pack(name, w_OI, mask_OI)
            leaf = jax.tree.map(jax.numpy.asarray, packed)
            yield name, sparsity, leaf, product, packed.nbytes, packed.bits_per_weight
    if arguments.peers:
        for name, leaf, product in jax_peers(shape):
            yield name, 0.0, leaf, product, leaf.nbytes, 8 * leaf.nbytes / w_OI.size


def run(arguments) -> list[dict]:
    import jax
    import numpy as np

    from sparse_jax import kernels
    from sparse_jax.kernels import native

    threads = len(os.sched_getaffinity(0))
    rows = []
    for size in arguments.sizes.split(","):
        shape = tuple(int(n) for n in size.split("x"))
        rng = np.random.default_rng(1)
        x_BI = rng.standard_normal((arguments.batch, shape[1])).astype(np.float32)
        x_BI = jax.numpy.asarray(x_BI)
        dense = kernels.pack("dense_float32", rng.standard_normal(shape, np.float32))
        leaf = jax.tree.map(jax.numpy.asarray, dense)
        baseline = Rotation(kernels.dot, leaf, dense.nbytes, x_BI, arguments)
        bandwidth = native.read_bandwidth(arguments.megabytes << 20, arguments.repeats)
        found = []
        for name, sparsity, leaf, product, nbytes, bits in cases(arguments, shape):
            rotation = Rotation(product, leaf, nbytes, x_BI, arguments)
            chain, dispatch, base = measure(rotation, baseline, arguments.repeats)
            bandwidth = max(bandwidth, dense.nbytes / base)
            found.append((name, sparsity, nbytes, bits, chain, dispatch, base))
            print(f"  {name} {sparsity} {1e3 * chain:.3f} ms", file=sys.stderr)
        if arguments.peers:
            for name, seconds, nbytes in time_torch(shape, arguments):
                base = min(baseline.time_chain() for _ in range(arguments.repeats))
                bits = 8 * nbytes / (shape[0] * shape[1])
                found.append((name, 0.0, nbytes, bits, seconds, seconds, base))
        rows += [
            row(found_row, shape, threads, bandwidth, arguments) for found_row in found
        ]
    return rows


def row(found, shape, threads, bandwidth, arguments) -> dict:
    name, sparsity, nbytes, bits, chain, dispatch, base = found
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
        "bits_per_weight": bits,
        "limit_milliseconds": 1e3 * nbytes / bandwidth,
        "share_of_limit": nbytes / bandwidth / chain,
        "speedup_vs_dense_float32": base / chain,
        "read_gigabytes_per_second": bandwidth / 1e9,
    }


def show(rows: list[dict]) -> None:
    header = ("type", "sparsity", "rows", "cols", "threads", "ms", "dispatch", "bits")
    print(
        "{:17s} {:>8s} {:>6s} {:>6s} {:>7s} {:>7s} {:>8s} {:>6s}".format(*header),
        end="",
    )
    print(f" {'limit':>7s} {'share':>6s} {'vs dense':>8s}")
    for r in rows:
        print(
            f"{r['type']:17s} {r['sparsity']:8.4g} {r['rows']:6d} {r['cols']:6d} "
            f"{r['threads']:7d} {r['milliseconds']:7.3f} "
            f"{r['dispatch_milliseconds']:8.3f} {r['bits_per_weight']:6.2f} "
            f"{r['limit_milliseconds']:7.3f} {r['share_of_limit']:6.0%} "
            f"{r['speedup_vs_dense_float32']:7.2f}x"
        )


def run_elsewhere(threads: int) -> list[dict]:
    """The same command in a process with that many CPUs: XLA's pool is sized once."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        command = [sys.executable, *sys.argv, f"--threads={threads}", f"--json={path}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["rows"]


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cpus = sorted(os.sched_getaffinity(0))
    if arguments.threads is None and len(cpus) > 1:
        rows = run_elsewhere(1) + run_elsewhere(len(cpus))
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
