"""Matrices whose rows, the outputs, lie over all devices while they are solved.

Given H, the rows of W are solved independently of each other, but for one thing: where
weights of all rows compete, every device counts its own, and the counts are added up.
So W is cut by rows over all devices of the mesh, whatever its axes, H is on all of
them, and the results go back to where the weights were.
"""

import contextlib
import functools
import math
from collections.abc import Iterable

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from sparse_jax import mesh as mesh_lib
from sparse_jax.sparsity import Pattern
from sparse_jax.sparsity.masks import to_kernel, to_matrix


class Rows:
    """Where matrices that share an input are solved.

    On a mesh of one device, that device; nothing is moved then.

    Attributes:
      shards: how many devices the rows are cut over: the largest number that divides
        the devices and the units of rows of every matrix; others hold copies.
    """

    def __init__(self, n_outs: Iterable[int], patterns: Iterable[Pattern | None]):
        """Chooses the number of shards.

        Args:
          n_outs: outputs of the matrices.
          patterns: theirs, in the same order, None where nothing is pruned; rows of a
            unit stay together.
        """
        mesh = mesh_lib.current()
        units = (
            n // (p.divisors[0] if p else 1)
            for n, p in zip(n_outs, patterns, strict=True)
        )
        self.shards = math.gcd(mesh.devices.size, *units)
        self._mesh: Mesh | None = None
        if mesh.size > 1:
            # The devices keep their order: one program may take arrays of both meshes.
            self._mesh = Mesh(
                mesh.devices.reshape(self.shards, -1),
                ("rows", "copies"),
                axis_types=(AxisType.Auto,) * 2,
            )

    def use(self) -> contextlib.AbstractContextManager:
        """The context in which the solver is called."""
        if self._mesh is None:
            return contextlib.nullcontext()
        return jax.set_mesh(self._mesh)

    def take(self, kernel: Shaped[Array, "in out"]) -> Shaped[Array, "out in"]:
        """A kernel as a matrix cut by rows."""
        if self._mesh is None:
            return _mover(to_matrix, None)(kernel)
        return _mover(to_matrix, NamedSharding(self._mesh, P("rows")))(kernel)

    def give(
        self, matrix: Shaped[Array, "out in"], place: Sharding
    ) -> Shaped[Array, "in out"]:
        """A matrix as a kernel that lies where another one did."""
        return _mover(to_kernel, None if self._mesh is None else place)(matrix)

    def give_whole(self, matrix: Shaped[Array, "out in"]) -> Shaped[Array, "in out"]:
        """A matrix as a kernel that lies on every device of the mesh in use."""
        return _mover(to_kernel, self._everywhere)(matrix)

    def replicate(self, leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Anything else, on every device of the mesh in use."""
        return _mover(_same, self._everywhere)(leaf)

    @property
    def _everywhere(self) -> NamedSharding | None:
        if self._mesh is None:
            return None
        return NamedSharding(mesh_lib.current(), P())


def _same(leaf):
    return leaf


# Compiled once per shape, and not with what surrounds them.
@functools.cache
def _mover(transpose, target: NamedSharding | None):
    if target is None:
        return jax.jit(transpose)
    whole = NamedSharding(target.mesh, P())

    def move(matrix):
        # One matrix is smaller than the Hessian that all devices hold; it would pass
        # through this state anyway, with a warning, where the axes are cut otherwise.
        return transpose(jax.lax.with_sharding_constraint(matrix, whole))

    return jax.jit(move, out_shardings=target)
