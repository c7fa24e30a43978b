"""The host's memory. Its settings are only for entry points to change."""

import ctypes
import pathlib
import sys
from typing import Any

import jax

# malloc.h of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_LARGE = 2**27  # bytes


def keep_freed_memory() -> bool:
    """Makes malloc keep freed blocks of up to 1 GiB instead of returning them.

    XLA on CPU allocates the temporaries of every step afresh. glibc takes large blocks
    from the kernel and gives them back at once, so each step faults all its pages in
    again: a quarter of the time of a small training step. Call it before the first
    computation; it changes nothing but speed and resident memory.

    Returns:
      Whether it was done: only glibc has these settings.
    """
    settings = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    # The heaps of other threads cannot hold blocks of more than 64 MiB.
    return _mallopt(settings | {_ARENA_MAX: 1})


def choose_memory(model: pathlib.Path) -> None:
    """Chooses speed over memory for a model on disk of up to 1 GiB, else memory.

    Args:
      model: file or directory; what is not there counts as small.
    """
    files = model.rglob("*.safetensors")
    if sum(file.stat().st_size for file in files) > 2**30:
        return_freed_memory()
    else:
        keep_freed_memory()


def run_lean(function: Any, *args: Any, **options: Any) -> Any:
    """Calls a jitted function without what its compilation leaves in malloc's heap.

    The compiler frees some 100 MB in small pieces, which malloc keeps; with large
    arguments they are given back to the system before the function allocates anything.

    Args:
      function: made by `jax.jit`.
      *args: its arguments.
      **options: its keyword arguments.
    """
    arrays = [a for a in jax.tree.leaves(args) if isinstance(a, jax.Array)]
    if sum(array.nbytes for array in arrays) > _LARGE:
        jax.block_until_ready(arrays)  # what they are made from is freed first
        function.lower(*args, **options).compile()  # kept for the call
        if libc := _glibc():
            libc.malloc_trim(0)
    return function(*args, **options)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _mallopt(settings: dict[int, int]) -> bool:
    libc = _glibc()
    if libc is None:
        return False
    return all(libc.mallopt(name, value) for name, value in settings.items())


def return_freed_memory() -> bool:
    """Makes malloc give every large block back to the system as soon as it is freed.

    The opposite of `keep_freed_memory`, for models nearly as large as the memory: by
    itself glibc keeps freed blocks of up to 32 MB, in a heap for every thread.

    Returns:
      Whether it was done: only glibc has these settings.
    """
    return _mallopt({_MMAP_THRESHOLD: 2**20, _TRIM_THRESHOLD: 2**22, _ARENA_MAX: 1})
