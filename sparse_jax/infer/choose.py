"""Which storage type a matrix gets: the fastest that holds its zeros and its dtype.

What decides is where the zeros are, counted over the 16 consecutive inputs that every
storage type works in:

    few zeros          dense
    balanced           n16: nearly the same number N kept of every 16
    whole groups       group_int4, where int4 is asked for
    anything else      bitmask (float32, bfloat16), ell (int8), dense (int4)

An N:16 type stores N weights of every 16, kept or not, so it does not pay for unequal
ones; a bitmask costs one bit per weight, and time to expand it. 2:4 and 4:8 patterns
are balanced: 8:16.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool

from sparse_jax.types import InputError

GROUP = 16

# The types for zeros that lie anywhere.
_SCATTERED = {
    "float32": "bitmask_float32",
    "bfloat16": "bitmask_bfloat16",
    "int8": "ell_int8",
    "int4": "dense_int4",
}
# Share of the slots of an N:16 or group type that must be kept weights.
_FULL = 0.9
# Below this sparsity dense is faster than scattered, and hardly larger.
_SPARSE = {"float32": 0.2, "bfloat16": 0.3, "int8": 0.4, "int4": 0.2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros:
    """Where the zeros of a matrix are.

    Attributes:
      shape: (out, in).
      kept: weights that are kept.
      most: the largest number kept of 16 consecutive inputs; 16 where 16 does not
        divide the inputs.
      groups: 16 consecutive inputs of which any is kept.
    """

    shape: tuple[int, int]
    kept: int
    most: int
    groups: int

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are not kept."""
        return 1.0 - self.kept / (self.shape[0] * self.shape[1])

    @property
    def balanced(self) -> bool:
        """Whether nearly all of 16 inputs keep the same number, less than 16."""
        slots = max(1, self.most) * self.shape[0] * self.shape[1] // GROUP
        return self.most < GROUP and self.kept >= _FULL * slots

    @property
    def whole_groups(self) -> bool:
        """Whether nearly all of 16 inputs keep all or none."""
        return self.shape[1] % GROUP == 0 and self.kept >= _FULL * GROUP * self.groups


def count_zeros(kept_OI: Bool[np.ndarray, "out in"]) -> Zeros:
    """Counts what decides about the storage type.

    Args:
      kept_OI: True = kept.

    Example:
      >>> count_zeros(np.tile([True, False], (2, 16)))
      Zeros(shape=(2, 32), kept=32, most=8, groups=4)
    """
    n_out, n_in = kept_OI.shape
    bits = np.packbits(kept_OI, axis=-1)
    kept = int(np.bitwise_count(bits).sum(dtype=np.int64))
    most, groups = GROUP, n_out * -(-n_in // GROUP)
    if n_in % GROUP == 0:
        counts = np.bitwise_count(bits.view(np.uint16))
        most, groups = int(counts.max()), int(np.count_nonzero(counts))
    return Zeros(shape=(n_out, n_in), kept=kept, most=most, groups=groups)


def choose(zeros: Zeros, dtype: str) -> str:
    """The storage type of a matrix, by name.

    Args:
      zeros: see `count_zeros`.
      dtype: of the stored weights: float32, bfloat16, int8 or int4.

    Example:
      >>> choose(count_zeros(np.tile([True, False], (2, 16))), "bfloat16")
      'n16_bfloat16'
    """
    if zeros.balanced:
        return f"n16_{dtype}"
    if zeros.sparsity < _SPARSE[dtype]:
        return f"dense_{dtype}"
    if dtype == "int4" and zeros.whole_groups:
        return "group_int4"
    return _SCATTERED[dtype]


def check_balanced(
    kind: str, kept_OI: Bool[np.ndarray, "out in"], zeros: Zeros
) -> None:
    """Raises InputError, which says where, unless an N:16 type suits a matrix.

    Any matrix would fit with N = 16, larger than dense.
    """
    if zeros.balanced:
        return
    counts = np.bitwise_count(np.packbits(kept_OI, axis=-1).view(np.uint16))
    usual = int(np.bincount(counts.reshape(-1)).argmax())
    row, block = np.argwhere(counts != usual)[0] if np.ptp(counts) else (0, 0)
    inputs = f"inputs {GROUP * block} to {GROUP * block + GROUP - 1}"
    raise InputError(
        f"{kind}: the matrix cannot be held: row {row}, {inputs} keep "
        f"{counts[row, block]} of 16, expected the same number below 16 everywhere "
        f"(most keep {usual}); choose another format, or auto"
    )
