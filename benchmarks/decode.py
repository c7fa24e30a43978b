"""Decoding of a random Llama with 0.55B parameters, for every storage type.

    python benchmarks/decode.py --json=decode.json
    python benchmarks/decode.py --types=dense_float32,n16_int8 --threads=1 --repeats=5

Every type is measured end to end and in parts, each the best of `--repeats`, in turns,
because the machine's speed drifts:

    milliseconds   of one token, by the engine, sampling and dispatch included
    matrices       all products with packed matrices of one token, in one jitted chain
    head           the product with the head, the same for every type (`--head`)
    attention      all layers' attention over the cache, new keys and values stored
    expected       matrices + head + attention: what Amdahl's law leaves
    share          expected / milliseconds
    share_of_limit bytes of weights and cache / read bandwidth / milliseconds

N:16 types keep the N of 16 that is nearest, group_int4 whole groups; all others drop
single weights. Matrices of one shape hold the same numbers, each in its own memory.
`--threads=1` restricts the process to one CPU.
"""

import argparse
import json
import os
import pathlib
import time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--sparsity", type=float, default=0.7, help="of sparse types")
    parser.add_argument("--head", default="dense_float32", help="its storage type")
    parser.add_argument("--threads", type=int, help="1, or all by default")
    parser.add_argument("--prompt", type=int, default=128, help="tokens held before")
    parser.add_argument("--tokens", type=int, default=32, help="written per repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--json")
    return parser.parse_args()


def make_config(layers: int):
    from sparse_jax.models import LlamaConfig

    return LlamaConfig(
        vocab_size=32_000,
        d_model=1536,
        d_ff=4096,
        n_layers=layers,
        n_heads=24,
        n_kv_heads=8,
        max_seq_len=2048,
        eos_token_id=None,
    )


def matrices_part(model):
    """One token's products with packed matrices; each waits for the one before."""
    import jax
    import numpy as np

    from sparse_jax import kernels
    from sparse_jax.infer.measure import packed_leaves

    leaves = packed_leaves(model.params["layers"])
    inputs = {leaf.shape[1]: np.ones((1, leaf.shape[1]), np.float32) for leaf in leaves}

    @jax.jit
    def chain(leaves, inputs):
        y_BO = next(iter(inputs.values()))
        for leaf in leaves:
            y_BO = kernels.dot(inputs[leaf.shape[1]] + 1e-30 * y_BO[0, 0], leaf)
        return y_BO

    return lambda: chain(leaves, inputs)


def head_part(model):
    import jax
    import numpy as np

    from sparse_jax import kernels

    head = model.params["lm_head"]["kernel"]
    x_BD, dot = np.ones((1, head.shape[1]), np.float32), jax.jit(kernels.dot)
    return lambda: dot(x_BD, head)


def attention_part(config, prompt: int, capacity: int):
    """One token's attention in all layers, the cache donated as in the engine."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sparse_jax import ops
    from sparse_jax.models import cache as caches

    shape = 1, 1, config.n_heads, config.head_width
    q_BTNH = np.ones(shape, np.float32)
    k_BTKH = q_BTNH[:, :, : config.kv_heads]
    state = caches.with_lengths(caches.empty(config, 1, capacity), np.array([prompt]))

    def run(cache, q_BTNH, k_BTKH):
        mask_B1TS = (jnp.arange(capacity) <= cache.lengths[0])[None, None, None]
        out_BTNH, layers = q_BTNH, []
        for index in range(config.n_layers):
            layer = cache.layer(index).append(
                k_BTKH, k_BTKH + 1e-30 * out_BTNH[0, 0, 0]
            )
            out_BTNH = ops.attention(q_BTNH, *layer.read(), mask_B1TS)
            layers.append(layer)
        keys, values = zip(*((a.keys_BKSH, a.values_BKHS) for a in layers), strict=True)
        return out_BTNH, caches.Cache(keys, values, cache.lengths)

    compiled = jax.jit(run, donate_argnums=0)

    def call():
        nonlocal state
        out_BTNH, state = compiled(state, q_BTNH, k_BTKH)
        return out_BTNH

    return call


def engine_part(model, prompt: int, tokens: int, capacity: int):
    """`tokens` steps of the engine's loop behind `prompt` tokens."""
    import numpy as np

    from sparse_jax.infer.runner import Runner
    from sparse_jax.models import cache as caches

    runner, one = Runner(model), np.ones(1, np.int32)
    state = caches.empty(model.config, 1, capacity)

    def call():
        nonlocal state
        state, token_B = caches.with_lengths(state, np.array([prompt])), one
        for _ in range(tokens):
            token_B, state = runner.step(state, token_B, one, {})
        return token_B

    return call


def measure(name: str, arguments, bandwidth: float) -> dict:
    import jax

    from sparse_jax.infer import random_model
    from sparse_jax.infer.measure import packed_leaves
    from sparse_jax.models.cache import capacity_for

    config = make_config(arguments.layers)
    sparsity = 0.0 if name.startswith("dense_") else arguments.sparsity
    options = {"sparsity": sparsity, "head": arguments.head, "alike": True}
    model = random_model(config, name, **options)
    prompt, tokens = arguments.prompt, arguments.tokens
    capacity = capacity_for(prompt + tokens, config)
    parts = {
        "milliseconds": engine_part(model, prompt, tokens, capacity),
        "matrices": matrices_part(model),
        "head": head_part(model),
        "attention": attention_part(config, prompt, capacity),
    }
    calls = {"milliseconds": 1, "matrices": 4, "head": 16, "attention": 16}
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(arguments.repeats + 1):  # the first one compiles
        for part, call in parts.items():
            started = time.perf_counter()
            for _ in range(calls[part]):
                result = call()
            jax.block_until_ready(result)
            spent = (time.perf_counter() - started) / calls[part]
            best[part] = min(best[part], 1e3 * spent)
    best["milliseconds"] /= tokens
    matrices = packed_leaves(model.params["layers"])
    packed = sum(leaf.nbytes for leaf in matrices)
    cache = 8 * config.n_layers * config.kv_heads * config.head_width * capacity
    read = packed + model.params["lm_head"]["kernel"].nbytes + cache
    weights = sum(leaf.shape[0] * leaf.shape[1] for leaf in matrices)
    expected = best["matrices"] + best["head"] + best["attention"]
    return {
        "type": name,
        "sparsity": sparsity,
        "bits_per_weight": 8 * packed / weights,
        "tokens_per_second": 1e3 / best["milliseconds"],
        **best,
        "expected": expected,
        "share": expected / best["milliseconds"],
        "megabytes_read": read / 1e6,
        "share_of_limit": 1e3 * read / bandwidth / best["milliseconds"],
    }


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads == 1:  # before the first computation starts XLA's pool
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from sparse_jax.infer.measure import read_bandwidth
    from sparse_jax.kernels import FORMATS

    names = arguments.types.split(",") if arguments.types else list(FORMATS)
    bandwidth = read_bandwidth()
    threads = len(os.sched_getaffinity(0))
    print(f"{threads} threads, memory {bandwidth / 1e9:.1f} GB/s; milliseconds:")
    columns = ("milliseconds", "matrices", "head", "attention", "expected")
    titles = (*("bits", "tokens/s", "speed-up"), *columns, "share", "of limit")
    print(f"{'type':<18}" + "".join(f"{title:>13}" for title in titles))
    rows, base = [], None
    for name in names:
        row = measure(name, arguments, bandwidth)
        base = base or row["tokens_per_second"]
        row["speedup"] = row["tokens_per_second"] / base
        rows.append(row)
        numbers = [row["bits_per_weight"], row["tokens_per_second"], row["speedup"]]
        numbers += [row[column] for column in columns]
        text = "".join(f"{number:>13.2f}" for number in numbers)
        shares = f"{row['share']:>13.1%}{row['share_of_limit']:>13.1%}"
        print(f"{name:<18}{text}{shares}", flush=True)
    if arguments.json:
        report = {"threads": threads, "bandwidth": bandwidth, "rows": rows}
        report |= vars(arguments)
        pathlib.Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
