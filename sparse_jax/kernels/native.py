"""The native kernels, where they were built, as one foreign function of XLA."""

import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.types import InputError

_TARGET = "sparse_jax_dot"

ISAS = ("portable", "avx2", "avx512")
"""The instruction sets that the kernels are compiled for."""


@functools.cache
def _module() -> Any:
    """The compiled module, its handler registered; None where it was not built."""
    try:
        from sparse_jax.kernels import _native
    except ImportError:
        return None
    jax.ffi.register_ffi_target(_TARGET, _native.dot_handler(), platform="cpu")
    return _native


@functools.cache
def available() -> bool:
    """Whether the native kernels are installed; says so aloud, once, when not."""
    if _module() is not None:
        return True
    print(
        "sparse_jax: the native kernels are not installed (no C++ compiler was found "
        "when it was); packed matrices are multiplied by plain JAX, slowly. Install a "
        "C++17 compiler and run pip install again.",
        file=sys.stderr,
    )
    return False


@functools.cache
def isa() -> str:
    """The instruction set in use: the best of this CPU, or SPARSE_JAX_ISA.

    Raises:
      InputError: SPARSE_JAX_ISA names one that this CPU or this build lacks.
    """
    try:
        return _module().isa()
    except ValueError as error:
        raise InputError(f"SPARSE_JAX_ISA: {error}") from error


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that this CPU and this build have."""
    return tuple(_module().isas()) if _module() is not None else ()


def read_bandwidth(
    n_bytes: int = 2**28, repeats: int = 5, threads: int | None = None
) -> float:
    """Bytes per second that the memory gives to plain reading: every kernel's limit.

    Args:
      n_bytes: how much is read; several times the last-level cache.
      repeats: the best of them counts.
      threads: by default those of XLA's pool, one for each CPU of this process.

    Raises:
      InputError: the native kernels are not installed.
    """
    if _module() is None:
        raise InputError(
            "the read bandwidth is measured by the native kernels, which are not "
            "installed; install a C++17 compiler and sparse_jax again"
        )
    if threads is None:
        threads = len(os.sched_getaffinity(0))
    return _module().read_bandwidth(n_bytes, repeats, threads)


def check(format: str, shape: tuple[int, int], arrays: dict[str, np.ndarray]) -> str:
    """What is wrong with a leaf, as the end of a sentence; empty when nothing is.

    Every size, count and offset that the kernels trust is checked, so this reads the
    arrays. They are contiguous and in the format's order.
    """
    described = [
        (array.dtype.name, list(array.shape), array.ctypes.data)
        for array in arrays.values()
    ]
    return _module().check(format, shape, described)


def dot(
    x_BI: jax.Array,
    format: str,
    n_out: int,
    arrays: tuple[jax.Array, ...],
    rows: jax.Array | None,
    cols: jax.Array | None,
    isa_name: str = "",
) -> jax.Array:
    """y_BO from the native kernel of a format, on XLA's own threads."""
    assert _module() is not None
    selections = [panels for panels in (rows, cols) if panels is not None]
    call = jax.ffi.ffi_call(
        _TARGET, jax.ShapeDtypeStruct((x_BI.shape[0], n_out), jnp.float32)
    )
    return call(
        x_BI,
        *selections,
        *arrays,
        format=format,
        isa=isa_name,
        has_rows=np.bool_(rows is not None),
        has_cols=np.bool_(cols is not None),
    )
