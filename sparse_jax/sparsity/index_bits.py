"""What it takes to say which weights a pattern keeps."""

import math

from sparse_jax.sparsity.patterns import NM, Pattern, UnitPattern


def index_bits(pattern: Pattern | None) -> float:
    """Bits per original weight that name the kept ones, by the pattern's definition.

        N:M            min(1, ceil(log2 C(m, n)) / m); of 2:4 two bits for a kept
                       weight, as hardware stores them, and so 1
        whole units    one bit for a unit
        None: dense    0

    Args:
      pattern: the shape of the zeros.

    Example:
      >>> from sparse_jax.sparsity import parse
      >>> [index_bits(parse(text)) for text in ("2:4", "5:16", "unstructured@0.7")]
      [1.0, 0.8125, 1.0]
      >>> index_bits(parse("group:16@0.5"))
      0.0625
    """
    if pattern is None:
        return 0.0
    if isinstance(pattern, NM):
        if (pattern.n, pattern.m) == (2, 4):
            return 1.0
        choices = math.comb(pattern.m, pattern.n)
        return min(1.0, math.ceil(math.log2(choices)) / pattern.m)
    assert isinstance(pattern, UnitPattern)  # there are no others
    return 1 / math.prod(pattern.unit)
