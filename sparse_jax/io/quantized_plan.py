"""Which matrices of a model are written as codes, in which tensors."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.io.compressed_tensors import layout
from sparse_jax.io.names import Slot
from sparse_jax.io.quantization_config import (
    INTS,
    LINEAR,
    METHOD,
    PACKED,
    RANGE,
    ROWS,
    STRATEGY,
    Scheme,
)
from sparse_jax.quant import Activations, Grid, GridConfig, Grids
from sparse_jax.types import InputError

_HEAD = "lm_head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """How one matrix is written.

    Attributes:
      scheme: how it is quantised.
      scale_dtype: of its scales in the file, "BF16" where these hold them exactly,
        or "F32".
      input_scale: the static scale of its inputs.
    """

    scheme: Scheme
    scale_dtype: str
    input_scale: float | None = None

    def tensors(
        self, slot: Slot, shape: tuple[int, ...]
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Tensor name -> dtype and shape, of a matrix of `shape` (out, in)."""
        module = module_of(slot)
        found = layout(self.scheme, shape)
        found["weight_scale"] = self.scale_dtype, found["weight_scale"][1]
        return {f"{module}.{name}": value for name, value in found.items()}


def module_of(slot: Slot) -> str:
    """The module that a matrix is the weight of."""
    return slot.name.removesuffix(".weight")


def key_of(slot: Slot) -> tuple[str, int]:
    """The key of a matrix in `quant.Grids`."""
    return slot.path, slot.layer or 0


def plan(
    grids: Grids,
    slots: Iterable[Slot],
    shapes: Mapping[str, tuple[int, ...]],
    activations: Activations | None,
) -> dict[str, Stored]:
    """Decides how matrices are written; called by all processes where grids are shared.

    Args:
      grids: of the quantised ones.
      slots: tensors of the model.
      shapes: leaf path -> shape, [*L, in, out].
      activations: how inputs are rounded; None = not at all.

    Returns:
      Tensor name -> how it is written, of those that are quantised.

    Raises:
      InputError: a grid belongs to no matrix, does not fit it, or has no static scale.
    """
    unknown, found = dict(grids), {}
    for slot in slots:
        grid = unknown.pop(key_of(slot), None)
        if grid is None:
            continue
        where = f"grid of {slot.path} of layer {slot.layer}"
        if not slot.transposed:
            raise InputError(f"{where}: only matrices have grids; leave it out")
        n_in, n_out = shapes[slot.path][-2:]
        _check_fit(grid, n_in, n_out, where)
        found[slot.name] = Stored(
            scheme=scheme_for(grid.config, n_in, activations),
            scale_dtype=_scale_dtype(grid),
            input_scale=_input_scale(activations, slot),
        )
    if unknown:
        raise InputError(
            f"grids: {next(iter(unknown))} is no (leaf path, layer) of a matrix of the "
            "model; leave it out"
        )
    return found


def scheme_for(
    config: GridConfig, n_in: int, activations: Activations | None
) -> Scheme:
    """The scheme in which a matrix of `n_in` inputs is written.

    Transformers refuses groups of which the last is ragged, and the packed zero points
    of groups and rows, but takes blocks of one row, ragged or with zero points.
    """
    packed = config.bits < 8 or config.group > 0
    width = config.group or n_in
    blocks = packed and (n_in % width != 0 or not config.symmetric)
    return Scheme(
        bits=config.bits,
        group=config.group,
        packed=packed,
        symmetric=config.symmetric,
        blocks=width if blocks else 0,
        activations=None if activations is None else activations.kind,
    )


def to_json(plans: Mapping[str, Stored], slots: Iterable[Slot]) -> dict[str, Any]:
    """The `quantization_config` of a model.

    Args:
      plans: see `plan`; at least one matrix.
      slots: tensors of the model; the matrices among them that have no plan are floats.
    """
    matrices = [slot for slot in slots if slot.transposed]
    schemes = {
        module_of(slot): plans[slot.name].scheme
        for slot in matrices
        if slot.name in plans
    }
    # A tied head is a module too, to those who read this.
    modules = [*map(module_of, matrices), _HEAD]
    targets: dict[Scheme, list[str]] = {}
    for module, scheme in schemes.items():
        targets.setdefault(scheme, []).append(module)
    if len(targets) == 1:
        targets = {scheme: [LINEAR] for scheme in targets}
    formats = {_format(scheme) for scheme in targets}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"{ROWS if scheme.blocks and not scheme.group else 'group_'}{i}": {
                "targets": targeted,
                "weights": _weights(scheme),
                "input_activations": _inputs(scheme),
                "output_activations": None,
                "format": _format(scheme),
            }
            for i, (scheme, targeted) in enumerate(targets.items())
        },
        "ignore": [name for name in dict.fromkeys(modules) if name not in schemes],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _check_fit(grid: Grid, n_in: int, n_out: int, where: str) -> None:
    expected = grid.config.groups(n_in), n_out
    zeros = expected if grid.zeros is None else grid.zeros.shape
    if grid.scales.shape != expected or zeros != expected:
        raise InputError(
            f"{where}: expected scales of shape {list(expected)} for {n_in} inputs and "
            f"{n_out} outputs, found {list(grid.scales.shape)}"
        )
    if grid.config.symmetric != (grid.zeros is None):
        raise InputError(f"{where}: zero points are for asymmetric grids alone")


def _scale_dtype(grid: Grid) -> str:
    """The dtype that holds all scales, those of the grid's own config if they fit."""
    scales = grid.scales
    if grid.config.scale_dtype != jnp.bfloat16:
        return "F32"
    rounded = scales.astype(jnp.bfloat16).astype(jnp.float32)
    same = (
        jnp.all(rounded == scales)
        if isinstance(scales, jax.Array)
        else np.all(rounded == scales)
    )
    return "BF16" if bool(same) else "F32"


def _input_scale(activations: Activations | None, slot: Slot) -> float | None:
    if activations is None or activations.kind != "static":
        return None
    if key_of(slot) not in activations.scales:
        raise InputError(
            f"activations.scales: {slot.path} of layer {slot.layer} is quantised and "
            "has no static scale"
        )
    return activations.scales[key_of(slot)]


def _inputs(scheme: Scheme) -> dict[str, Any] | None:
    if scheme.activations is None:
        return None
    kind = scheme.activations
    return RANGE | {"strategy": STRATEGY[kind], "dynamic": kind == "dynamic"}


def _weights(scheme: Scheme) -> dict[str, Any]:
    width: dict[str, Any] = {"strategy": "channel"}
    if scheme.blocks:
        width = {"strategy": "block", "block_structure": [1, scheme.blocks]}
    elif scheme.group:
        width = {"strategy": "group", "group_size": scheme.group}
    symmetric = {"symmetric": scheme.symmetric, "dynamic": False}
    return {"num_bits": scheme.bits, "type": "int", **symmetric, **width}


def _format(scheme: Scheme) -> str:
    return PACKED if scheme.packed else INTS
