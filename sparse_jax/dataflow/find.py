"""What is to be simulated: an architecture and its masks, by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparse_jax import io
from sparse_jax.dataflow.masks import DrawnMasks, Masks, ModelMasks
from sparse_jax.models import LlamaConfig, sizes
from sparse_jax.types import InputError

SPARSITIES = ("0.5", "0.7", "0.75", "0.9")
"""Drawn where neither a flag nor a model says otherwise."""


class Found(NamedTuple):
    """An architecture and the masks to simulate it with.

    Attributes:
      model: architecture.
      masks: one or more.
      first_layer: masks of the first layer, which stand for `masks[0]` where a whole
        model would take long; None = those are quick themselves.
    """

    model: LlamaConfig
    masks: Sequence[Masks]
    first_layer: Masks | None


def find(
    name: str, sparsities: Sequence[str] | None, kind: str = "uniform", seed: int = 0
) -> Found:
    """A size with drawn masks, or a directory with its own.

    Args:
      name: size, or directory that `io.open_blocks` reads.
      sparsities: numbers as a flag lists them, of masks that are drawn; None = those of
        the directory, or `SPARSITIES` for a size.
      kind: of drawn masks, see `DrawnMasks`.
      seed: of drawn masks.

    Raises:
      InputError: no such model, one without masks, or masks that cannot be drawn.

    Example:
      >>> [masks.sparsity for masks in find("llama2_7b", ["0.7"]).masks]
      [0.7]
    """
    if name in sizes.SIZES and not Path(name).exists():
        drawn = drawn_masks(kind, sparsities or SPARSITIES, seed)
        return Found(sizes.get(name), drawn, None)
    blocks = io.open_blocks(name)
    if sparsities:
        return Found(blocks.config, drawn_masks(kind, sparsities, seed), None)
    if not blocks.masked:
        raise InputError(
            f"{name} is dense ({blocks.source}); name a pruned model, or set "
            "--sparsity to draw masks for this one"
        )
    whole, first = ModelMasks(blocks), ModelMasks(blocks, first_layer=True)
    return Found(blocks.config, [whole], first)


def drawn_masks(
    kind: str, sparsities: Sequence[str], seed: int = 0
) -> list[DrawnMasks]:
    """Drawn masks of several sparsities, as a flag lists them.

    Raises:
      InputError: an unknown kind, no number, or one outside [0, 1).

    Example:
      >>> [masks.sparsity for masks in drawn_masks("uniform", ["0.5", "0.7"])]
      [0.5, 0.7]
    """
    masks = []
    for text in sparsities:
        try:
            sparsity = float(text)
        except ValueError as error:
            raise InputError(
                f"sparsity must be a number in [0, 1), found {text!r}"
            ) from error
        masks.append(DrawnMasks(kind, sparsity, seed))
    return masks
