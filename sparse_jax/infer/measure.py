"""How fast a packed model reads and writes, beside what memory allows.

A step of decoding reads every weight and the whole cache once, so that it takes at
least their bytes over the bandwidth of memory.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from sparse_jax import kernels
from sparse_jax.infer.load import repack
from sparse_jax.infer.runner import Runner
from sparse_jax.infer.sample import stack
from sparse_jax.io import PackedModel
from sparse_jax.kernels import Packed, find_format, native, pack
from sparse_jax.models import cache as caches
from sparse_jax.types import InputError

_PROBE = (8192, 8192)  # float32: larger than any cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured of one model.

    Attributes:
      name: of the model or the storage type.
      prefill: tokens read per second, prompts one at a time.
      decode: tokens written per second.
      bytes_per_token: read from memory for one token written: weights and cache.
      matrix_bytes: of the matrices in the layers.
      bits_per_weight: of them, mean.
      share_of_limit: bytes_per_token x decode / bandwidth.
    """

    name: str
    prefill: float
    decode: float
    bytes_per_token: int
    matrix_bytes: int
    bits_per_weight: float
    share_of_limit: float


def compare(
    model: PackedModel,
    against: Sequence[str],
    *,
    prompt_tokens: int = 256,
    tokens: int = 64,
    repeats: int = 3,
) -> dict[str, Any]:
    """Measures a model, and the same weights in other storage types.

    Args:
      model: as it was packed.
      against: names of storage types for the matrices of its layers.
      prompt_tokens: length of the prompt; less where the context is short.
      tokens: how many are written; less where the context is short.
      repeats: the fastest counts.

    Returns:
      `bandwidth` in bytes per second, `threads`, the lengths, and `rows`: a `Speed` as
      a dict for the model and each type, with its `speedup` in decoding over the first
      type.

    Raises:
      InputError: a type is unknown, or cannot hold the model's zeros; or a number is
        below 1.
    """
    for kind in against:
        find_format(kind)
    for name, value in (
        ("prompt_tokens", prompt_tokens),
        ("tokens", tokens),
        ("repeats", repeats),
    ):
        if value < 1:
            raise InputError(f"{name} must be >= 1, found {value}")
    context = model.config.context
    prompt_tokens = min(prompt_tokens, context // 2)
    tokens = min(tokens, context - prompt_tokens)
    lengths = {"prompt_tokens": prompt_tokens, "tokens": tokens, "repeats": repeats}
    bandwidth = read_bandwidth()
    speeds = [measure(model, "as packed", bandwidth, **lengths)]
    for kind in against:
        speeds.append(measure(repack(model, kind), kind, bandwidth, **lengths))
    base = speeds[min(1, len(speeds) - 1)].decode
    rows = [dataclasses.asdict(s) | {"speedup": s.decode / base} for s in speeds]
    return {"source": model.source, "bandwidth": bandwidth, **lengths, "rows": rows}


def measure(
    model: PackedModel,
    name: str,
    bandwidth: float,
    *,
    prompt_tokens: int,
    tokens: int,
    repeats: int,
) -> Speed:
    """Measures one model; arguments as of `compare`."""
    runner, config = Runner(model), model.config
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, config.vocab_size, prompt_tokens).tolist()
    capacity = caches.capacity_for(prompt_tokens + tokens, config)
    settings, one = stack([]), np.ones(1, np.int32)
    reading = writing = np.inf
    cache = caches.empty(config, 1, capacity)
    for _ in range(repeats + 1):  # the first one compiles
        cache = caches.with_lengths(cache, np.zeros(1, np.int32))
        started = time.perf_counter()
        token_B, cache = runner.read(cache, [prompt], settings)
        jax.block_until_ready(token_B)
        middle = time.perf_counter()
        for _ in range(tokens):
            token_B, cache = runner.step(cache, token_B, one, settings)
        jax.block_until_ready(token_B)
        reading = min(reading, middle - started)
        writing = min(writing, time.perf_counter() - middle)
    matrices = packed_leaves(model.params["layers"])
    matrix_bytes = sum(leaf.nbytes for leaf in matrices)
    head = model.params["lm_head"]["kernel"].nbytes
    bytes_per_token = matrix_bytes + head + cache.nbytes
    weights = sum(leaf.shape[0] * leaf.shape[1] for leaf in matrices)
    return Speed(
        name=name,
        prefill=prompt_tokens / reading,
        decode=tokens / writing,
        bytes_per_token=bytes_per_token,
        matrix_bytes=matrix_bytes,
        bits_per_weight=8 * matrix_bytes / weights,
        share_of_limit=bytes_per_token * tokens / writing / bandwidth,
    )


def packed_leaves(tree: Any) -> list[Packed]:
    """The packed matrices of a tree."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Packed))
    return [leaf for leaf in leaves if isinstance(leaf, Packed)]


def read_bandwidth(repeats: int = 8) -> float:
    """Bytes per second that memory gives, the best of some runs.

    On all threads, the higher one of a plain read loop and the dense float32 kernel;
    without the native kernels, NumPy's sum on one.
    """
    w_OI, best = np.ones(_PROBE, np.float32), np.inf
    if native.available():
        leaf = jax.tree.map(jax.device_put, pack("dense_float32", w_OI))
        dot, x_BI = jax.jit(kernels.dot), w_OI[:1]
        read = partial(dot, x_BI, leaf)
        plain = native.read_bandwidth()
    else:
        read, plain = partial(np.sum, w_OI), 0.0
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(read())
        best = min(best, time.perf_counter() - started)
    return max(plain, w_OI.nbytes / best)


def speed_table(numbers: dict[str, Any]) -> str:
    """What `compare` returned, as a table."""
    lines = [
        f"memory {numbers['bandwidth'] / 1e9:.1f} GB/s; prompt of "
        f"{numbers['prompt_tokens']} tokens, {numbers['tokens']} written, best of "
        f"{numbers['repeats']}",
        "",
        f"{'matrices':<18}{'bits':>7}{'MB':>9}{'prefill/s':>11}{'decode/s':>10}"
        f"{'speed-up':>10}{'MB/token':>10}{'of limit':>10}",
    ]
    for row in numbers["rows"]:
        lines.append(
            f"{row['name']:<18}{row['bits_per_weight']:>7.2f}"
            f"{row['matrix_bytes'] / 1e6:>9.2f}{row['prefill']:>11.1f}"
            f"{row['decode']:>10.1f}{row['speedup']:>9.2f}x"
            f"{row['bytes_per_token'] / 1e6:>10.2f}{row['share_of_limit']:>9.1%}"
        )
    return "\n".join(lines)
