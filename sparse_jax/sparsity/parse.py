"""Patterns as text, the way configs and flags name them."""

import re

from sparse_jax.sparsity.patterns import NM, Block, Group, Pattern, Unstructured
from sparse_jax.types import InputError


def parse(text: str, sparsity: float | None = None) -> Pattern:
    """Reads a pattern: "unstructured", "2:4", "group:16" or "block:16x16" (in x out).

    Args:
      text: the pattern; "@0.7" at its end sets the sparsity and wins over `sparsity`.
      sparsity: fraction of zeros of a pattern that does not fix its own as N:M does.

    Raises:
      InputError: the text is none of these, or a sparsity is missing or superfluous.

    Example:
      >>> parse("group:16", 0.5)
      Group(size=16, sparsity=0.5, per_row=False)
      >>> parse("unstructured@0.7")
      Unstructured(sparsity=0.7, per_row=False)
    """
    shape, at, own = text.strip().partition("@")
    if at:
        try:
            sparsity = float(own)
        except ValueError:
            raise InputError(
                f"pattern {text!r}: expected a number after '@', found {own!r}"
            ) from None
    if match := re.fullmatch(r"(\d+):(\d+)", shape):
        if at:
            raise InputError(
                f"pattern {text!r}: n:m fixes its own sparsity; drop '@{own}'"
            )
        return NM(int(match[1]), int(match[2]))
    if not re.fullmatch(r"unstructured|group:\d+|block:\d+x\d+", shape):
        raise InputError(
            f"pattern {text!r} is not known; expected 'unstructured', 'N:M' such as "
            "'2:4' (N kept of every M), 'group:SIZE' or 'block:INxOUT'"
        )
    if sparsity is None:
        raise InputError(f"pattern {text!r} needs a sparsity, such as '{shape}@0.5'")
    sizes = [int(size) for size in re.findall(r"\d+", shape)]
    if shape == "unstructured":
        return Unstructured(sparsity)
    unit = Group if len(sizes) == 1 else Block
    return unit(*sizes, sparsity=sparsity)
