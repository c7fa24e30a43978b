"""What people would use instead of this package's kernels, timed beside them.

    jax float32, bfloat16    x @ w, weights [in, out] as JAX models store them
    torch float32, bfloat16  torch.nn.functional.linear
    torch int8               weights only, a scale per row (_weight_int8pack_mm)
    torch int8 dynamic       activations rounded to int8, too (linear_dynamic)
    torch int4               weights only, scale and zero per 128 inputs
                             (_weight_int4pack_mm_for_cpu)
    ggml ...                 see `ggml_peer.py`

All take float32 activations and give float32 results, like the kernels beside them, and
their products are compared with the float32 one before they are timed. Those that are
not installed are left out, and said so.
"""

import os
import sys
from collections.abc import Iterator

import numpy as np
from rotation import Calls, Rotation, copies_of

# Largest relative error of a product; int8 weights reach 0.02, int4 0.15.
TOLERANCE = 0.2


def peers(arguments, w_OI, x_BI) -> Iterator[tuple]:
    """(name, sparsity 0, bytes, rotation) of every peer, one in memory at a time."""
    makers = {"jax": jax_peers, "torch": torch_peers, "ggml": ggml_peers}
    for name in filter(None, arguments.peers.split(",")):
        for found in makers[name](arguments, w_OI, x_BI):
            yield (found[0], 0.0, *found[1:])


def check(name: str, y_BO, w_OI, x_BI) -> None:
    """Stops the run unless a peer computes what is measured."""
    expected_BO = x_BI @ w_OI.T
    error = np.linalg.norm(np.asarray(y_BO) - expected_BO) / np.linalg.norm(expected_BO)
    assert error < TOLERANCE, f"{name}: relative error {error:.3f}"


def jax_peers(arguments, w_OI, x_BI) -> Iterator[tuple]:
    import jax
    import jax.numpy as jnp

    def product(x_BI, w_IO):
        x_BI = x_BI.astype(w_IO.dtype)
        return jnp.matmul(x_BI, w_IO, preferred_element_type=jnp.float32)

    for dtype in (jnp.float32, jnp.bfloat16):
        name, w_IO = f"jax {dtype.__name__}", jnp.asarray(w_OI.T, dtype)
        check(name, jax.jit(product)(x_BI, w_IO), w_OI, x_BI)
        rotation = Rotation(
            product, w_IO, w_IO.nbytes, jnp.asarray(x_BI), arguments.megabytes
        )
        yield name, w_IO.nbytes, rotation


def torch_peers(arguments, w_OI, x_BI) -> Iterator[tuple]:
    try:
        import torch
    except ImportError:
        print("  torch is not installed: no such rows", file=sys.stderr)
        return
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_grad_enabled(False)
    w, x = torch.from_numpy(w_OI), torch.from_numpy(x_BI)
    for name, make in (
        ("float32", torch_float),
        ("bfloat16", torch_float),
        ("int8", torch_int8),
        ("int8 dynamic", torch_int8_dynamic),
        ("int4", torch_int4),
    ):
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        name = f"torch {name}"
        try:
            call, nbytes, copy = make(w, x, dtype)
            first = copy()
            y_BO = call(first)
        except (AttributeError, RuntimeError) as error:
            print(f"  {name} is missing here: {error}", file=sys.stderr)
            continue
        check(name, y_BO, w_OI, x_BI)
        n_copies = copies_of(nbytes, arguments.megabytes)
        copies = [first, *(copy() for _ in range(n_copies - 1))]
        yield name, nbytes, Calls(call, copies)


# Each: (product with one copy, bytes of the weights, maker of a copy).


def torch_float(w, x, dtype):
    import torch

    w = w.to(dtype)

    def call(copy):
        return torch.nn.functional.linear(x.to(dtype), copy).float()

    return call, w.numel() * w.element_size(), w.clone


def torch_int8(w, x, dtype):
    import torch

    scales = w.abs().amax(1) / 127
    codes = torch.round(w / scales[:, None]).to(torch.int8)
    scales = scales.to(dtype)

    def call(copy):
        y = torch.ops.aten._weight_int8pack_mm(x.to(dtype), copy, scales)
        return y.float()

    return call, codes.numel() + 2 * scales.numel(), codes.clone


def torch_int8_dynamic(w, x, _):
    import torch

    engines = torch.backends.quantized.supported_engines
    if "fbgemm" in engines:  # faster than the default here
        torch.backends.quantized.engine = "fbgemm"
    scales = (w.abs().amax(1) / 127).double()
    zeros = torch.zeros(len(w), dtype=torch.long)
    codes = torch.quantize_per_channel(w, scales, zeros, 0, torch.qint8)

    def call(copy):
        return torch.ops.quantized.linear_dynamic(x, copy, reduce_range=False)

    def copy():
        return torch.ops.quantized.linear_prepack(codes, None)

    return call, w.numel() + 4 * len(w), copy


def torch_int4(w, x, dtype, group=128):
    import torch

    w_OGI = w.reshape(len(w), -1, group)
    scales = (w_OGI.amax(2) - w_OGI.amin(2)) / 15
    middle = w_OGI.amin(2) + 8 * scales  # what code 8 stands for
    codes = torch.round((w_OGI - middle[..., None]) / scales[..., None]) + 8
    codes = codes.clamp(0, 15).to(torch.int32).reshape(w.shape)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    both = torch.stack([scales, middle], 2).transpose(0, 1).contiguous().to(dtype)

    def call(copy):
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(dtype), copy, group, both)
        return y.float()

    return call, packed.numel() + 2 * both.numel(), packed.clone


def ggml_peers(arguments, w_OI, x_BI) -> Iterator[tuple]:
    import ggml_peer

    yield from ggml_peer.peers(arguments, w_OI, x_BI, check)
