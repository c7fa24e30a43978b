"""Which storage type a matrix gets: the fastest that holds its zeros and its dtype.

The time of a product is a straight line in the bits that a type takes for the matrix;
measured lines and the places of the zeros, counted over the 16 consecutive inputs that
every storage type works in, decide. As a rule:

    few zeros          dense
    balanced           n16: nearly the same number N kept of every 16
    whole groups       group_int4, where int4 is asked for
    anything else      bitmask (float32, bfloat16), ell (int8), dense (int4, int2)

2:4 and 4:8 patterns are balanced: 8:16. An N:16 type stores N weights of every 16, kept
or not; it is considered only where nearly all of them are kept.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from sparse_jax.kernels import find_format
from sparse_jax.types import InputError

GROUP = 16

# Share of the slots of an N:16 or group type that must be kept weights.
_FULL = 0.9

# Time of a matrix-vector product, dense_float32 = 1: (that of 0 bits, of each bit per
# weight). Straight lines through what this gave, at most 10 % off, on one core with
# AVX2, where zeros pay least:
#   SPARSE_JAX_ISA=avx2 python benchmarks/cpu_kernels.py --threads=1 --peers= \
#       --sizes=4096x4096 --sparsities=0.0625,0.1875,0.3125,0.5,0.6875,0.8125
# With AVX-512 the same types win.
_TIMES = {
    "dense_float32": (0.0, 1.0 / 32),
    "dense_bfloat16": (0.0, 0.60 / 16),
    "dense_int8": (0.0, 0.29 / 8),
    "dense_int4": (0.0, 0.166 / 4.125),
    "dense_int2": (0.0, 0.088 / 2.28),
    "bitmask_float32": (0.33, 0.0228),
    "bitmask_bfloat16": (0.375, 0.0134),
    "ell_int8": (0.014, 0.0353),
    "n16_float32": (0.0, 0.0350),
    "n16_bfloat16": (0.014, 0.0335),
    "n16_int8": (0.002, 0.0330),
    "n16_int4": (0.015, 0.0313),
    "group_int4": (0.012, 0.0370),
    "group_int4_u8": (0.012, 0.0370),
}
_LARGE = 4096, 4096
# Times that differ by less are equal: the smaller type is chosen.
_EQUAL = 1.03
# Bits of ell_int8 by its definition: of a slot, and of a weight in the tail, of which
# five in eight places are taken.
_SLOT_BITS, _TAIL_BITS = 12, 26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros:
    """Where the zeros of a matrix are.

    Attributes:
      shape: (out, in).
      counts: how many runs of 16 consecutive inputs keep 0, 1, ... 16 weights; the last
        run of a row may be short.
    """

    shape: tuple[int, int]
    counts: tuple[int, ...]

    @property
    def kept(self) -> int:
        """Weights that are kept."""
        return sum(number * count for number, count in enumerate(self.counts))

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are not kept."""
        return 1.0 - self.kept / (self.shape[0] * self.shape[1])

    @property
    def most(self) -> int:
        """The largest number kept of 16; 16 where 16 does not divide the inputs."""
        if self.shape[1] % GROUP:
            return GROUP
        return max(number for number, count in enumerate(self.counts) if count)

    @property
    def groups(self) -> int:
        """Runs of 16 consecutive inputs of which any is kept."""
        return sum(self.counts[1:])

    @property
    def balanced(self) -> bool:
        """Whether nearly all of 16 inputs keep the same number, less than 16."""
        slots = max(1, self.most) * sum(self.counts)
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
      >>> zeros = count_zeros(np.tile([True, False], (2, 16)))
      >>> zeros.counts[8], zeros.most, zeros.balanced
      (4, 8, True)
    """
    bits = np.packbits(np.ascontiguousarray(kept_OI), axis=1)
    bits = np.pad(bits, ((0, 0), (0, bits.shape[1] % 2)))
    counts = np.bincount(np.bitwise_count(bits.view(np.uint16)).ravel(), minlength=17)
    return Zeros(shape=kept_OI.shape, counts=tuple(counts.tolist()))


def choose(zeros: Zeros, dtype: str) -> str:
    """The storage type of a matrix, by name.

    Args:
      zeros: see `count_zeros`.
      dtype: of the stored weights: float32, bfloat16, int8, int4 or int2. Types of more
        bits stand in where they are faster, at more bits per kept weight: ell_int8 for
        int4, both for int2.

    Example:
      >>> choose(count_zeros(np.tile([True, False], (2, 16))), "bfloat16")
      'n16_bfloat16'
    """
    return fastest(zeros, holders(zeros, dtype))


def fastest(zeros: Zeros, kinds: Sequence[str]) -> str:
    """The fastest of some types for a matrix; the smaller of two that are as fast."""
    bits = {kind: _bits(kind, zeros) for kind in kinds}
    times = {kind: _TIMES[kind][0] + _TIMES[kind][1] * bits[kind] for kind in kinds}
    least = _EQUAL * min(times.values())
    return min((kind for kind in kinds if times[kind] <= least), key=bits.__getitem__)


def holders(zeros: Zeros, dtype: str) -> list[str]:
    """The types that hold weights of a dtype, and for whose pattern the zeros are."""
    found = [f"dense_{dtype}"]
    if dtype == "int2":
        return found + holders(zeros, "int4")
    found.append("ell_int8" if dtype.startswith("int") else f"bitmask_{dtype}")
    if zeros.balanced:
        found.append(f"n16_{dtype}")
    if dtype == "int4" and zeros.whole_groups:
        found.append("group_int4")
    return found


def code_holders(zeros: Zeros, dtypes: Sequence[str]) -> list[str]:
    """The types of some dtypes that may take over codes, for their pattern of zeros."""
    found = [kind for dtype in dtypes for kind in holders(zeros, dtype)]
    if "group_int4" in found:
        found.append("group_int4_u8")
    return [kind for kind in dict.fromkeys(found) if find_format(kind).dtype in dtypes]


def _bits(kind: str, zeros: Zeros) -> float:
    """Bits per weight that a type takes for a large matrix with such zeros."""
    density = 1.0 - zeros.sparsity
    if kind == "ell_int8":
        return _ell_bits(zeros)
    if kind.startswith("n16_"):
        density = max(1, zeros.most) / GROUP
    elif kind.startswith("group_"):
        density = zeros.groups / sum(zeros.counts)
    return find_format(kind).expected_bits(*_LARGE, density)


def _ell_bits(zeros: Zeros) -> float:
    """With the number of slots per 16 inputs that takes least, see `ell_int8`."""

    def bits(slots: int) -> float:
        beyond = enumerate(zeros.counts[slots:])
        tail = sum(number * count for number, count in beyond) / sum(zeros.counts)
        return (_SLOT_BITS * slots + _TAIL_BITS * tail) / GROUP

    return min(map(bits, range(1, GROUP + 1)))


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
