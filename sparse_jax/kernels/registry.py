"""Every storage format by name, in the order of the native kernels."""

from sparse_jax.kernels import bitmask, dense, ell, group, n16
from sparse_jax.kernels.format import Format
from sparse_jax.types import InputError

FAMILIES = (dense, bitmask, ell, n16, group)

FORMATS: dict[str, Format] = {
    format.name: format for family in FAMILIES for format in family.FORMATS
}
"""The storage types by name."""


def find_format(name: str) -> Format:
    """The format of this name.

    Raises:
      InputError: there is none.
    """
    if name not in FORMATS:
        raise InputError(
            f"unknown format {name!r}; expected one of {', '.join(FORMATS)}"
        )
    return FORMATS[name]
