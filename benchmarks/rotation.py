"""Timing of one product whose weights come from memory, as when a model decodes."""

import time

import jax
import jax.numpy as jnp
import numpy as np


def copies_of(nbytes: int, megabytes: int) -> int:
    """Copies of a matrix that together have so many megabytes; at least two."""
    return max(2, -(-(megabytes << 20) // nbytes))


class Rotation:
    """Copies of one matrix, larger together than the cache, and what runs over them."""

    def __init__(self, product, leaf, nbytes, x_BI, megabytes):
        """Compiles and runs everything once.

        Args:
          product: (x_BI, leaf) -> y_BO, traceable.
          leaf: the matrix, a pytree.
          nbytes: of it.
          x_BI: activations.
          megabytes: of all copies together.
        """
        self.n = n_copies = copies_of(nbytes, megabytes)
        self.copies = [jax.tree.map(lambda a: a.copy(), leaf) for _ in range(n_copies)]
        self.x_BI = x_BI
        self.one = jax.jit(product)

        def chain(first_BI, copies):
            # Every product's input waits for the one before. Were it the sum of all
            # before, XLA would add them up anew for every product.
            y_BO = product(first_BI, copies[0])
            for copy in copies[1:]:
                y_BO = product(first_BI + 1e-30 * y_BO[:, :1], copy)
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


class Calls:
    """The same for a function that Python calls with every copy."""

    def __init__(self, call, copies):
        """Runs everything once.

        Args:
          call: does one product with one copy, and waits for it.
          copies: of the matrix.
        """
        self.call, self.copies = call, copies
        self.time_chain()

    def time_chain(self) -> float:
        """Seconds for a product."""
        start = time.perf_counter()
        for copy in self.copies:
            self.call(copy)
        return (time.perf_counter() - start) / len(self.copies)

    time_dispatch = time_chain


def measure(rotation, baseline, repeats: int) -> tuple[float, float, float]:
    """Best chain and dispatch times, and the baseline's best, taken in turn."""
    times = [
        (rotation.time_chain(), rotation.time_dispatch(), baseline.time_chain())
        for _ in range(repeats)
    ]
    return tuple(min(column) for column in zip(*times, strict=True))


class Speedups:
    """Speed-ups over dense_float32 of products with a random square matrix."""

    def __init__(self, size: int, megabytes: int, repeats: int):
        """Measures nothing yet.

        Args:
          size: rows and columns of the matrix; 0 = no speed-ups.
          megabytes: as of `Rotation`.
          repeats: as of `measure`.
        """
        self._size, self._megabytes, self._repeats = size, megabytes, repeats
        self._known: dict[tuple[str, str], float] = {}
        self._baseline: Rotation | None = None

    def of(self, kind: str, pattern) -> float | None:
        """The speed-up of a type, with the zeros of a pattern where it leaves any."""
        if not self._size:
            return None
        key = kind, "" if kind.startswith("dense_") else str(pattern)
        if key not in self._known:
            self._baseline = self._baseline or self._rotation("dense_float32", None)
            rotation = self._rotation(kind, pattern if key[1] else None)
            chain, _, base = measure(rotation, self._baseline, self._repeats)
            self._known[key] = base / chain
        return self._known[key]

    def _rotation(self, kind: str, pattern) -> Rotation:
        from sparse_jax import kernels

        rng, shape = np.random.default_rng(0), (self._size, self._size)
        w_OI, kept_OI = rng.standard_normal(shape, np.float32), np.ones(shape, bool)
        if pattern is not None:
            kept_OI = np.asarray(pattern.project(rng.random(shape, np.float32)))
        packed = kernels.pack(kind, w_OI, kept_OI)
        leaf = jax.tree.map(jnp.asarray, packed)  # NumPy's arrays are copied per call
        x_BI = jnp.asarray(rng.standard_normal((1, self._size), np.float32))
        return Rotation(kernels.dot, leaf, packed.nbytes, x_BI, self._megabytes)
