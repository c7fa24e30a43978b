"""Timing of one product whose weights come from memory, as when a model decodes."""

import time

import jax


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
