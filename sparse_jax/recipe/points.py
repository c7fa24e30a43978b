"""The chart of loss against bits: what the stages' results say of its points."""

from collections.abc import Mapping
from typing import Any

from sparse_jax import models
from sparse_jax.models import LlamaConfig
from sparse_jax.prune.config import LINEARS
from sparse_jax.quant import storage_bits
from sparse_jax.recipe.check import root_model
from sparse_jax.recipe.config import Recipe
from sparse_jax.recipe.report_config import Point
from sparse_jax.sparsity import NM, Pattern, index_bits, parse
from sparse_jax.tree import leaf_paths, match_rules
from sparse_jax.types import InputError

Result = Mapping[str, Any]

_FLOAT_BITS = 16


def equal_bits(recipe: Recipe, results: Mapping[str, Result]) -> dict[str, Any] | None:
    """The rows of `report.equal_bits`; None where the recipe asks for no chart."""
    config = recipe.report
    if not config.points or config.dense is None:
        return None
    rows, speeds = [], _speeds(results)
    for point in config.points:
        made = results[point.stage]
        packed = results[point.packed]["packed"] if point.packed else {}
        kind = next(iter(packed.get("formats", {})), None)
        rows.append(
            {
                "name": point.stage,
                "family": point.family,
                "bits": point.grid.bits if point.grid else _FLOAT_BITS,
                "zero_point": bool(point.grid and not point.grid.symmetric),
                "training": point.training,
                "loss": _losses(made["domains"]),
                "own_bits": own_bits(point, root_model(recipe, point.stage), made),
                "file_bits": packed.get("bits_per_weight"),
                "format": kind,
                "packed_loss": _losses(packed.get("domains", {})),
                "speedup": speeds.get((kind, _percent(packed))),
            }
        )
    return {"dense": _losses(results[config.dense]["domains"]), "points": rows}


def own_bits(point: Point, model: LlamaConfig, made: Result) -> float:
    """Bits per weight of the layers' matrices, by the definitions of pattern and grid.

    Of a matrix that the pattern does not divide, and that is therefore pruned without
    one, the index is a bitmap. Floats count 16 bits.

    Args:
      point: what the model is.
      model: its architecture.
      made: the result of its stage, whose `layers` have the kept weights.
    """
    zeros = {(row["path"], row["layer"]): row["sparsity"] for row in made["layers"]}
    shapes = leaf_paths(models.abstract_params(model))
    rules = [(LINEARS, True), (".*", False)]
    chosen = leaf_paths(match_rules(rules, models.abstract_params(model)))
    bits = weights = 0.0
    for path, shape in ((p, leaf.shape) for p, leaf in shapes.items() if chosen[p]):
        n_layers, n_in, n_out = shape
        index = index_bits(_pattern(point.family, (n_out, n_in)))
        for layer in range(n_layers):
            density = 1.0 - zeros.get((path, layer), 0.0)
            if point.grid is None:
                own = _FLOAT_BITS * density + index
            else:
                own = storage_bits(point.grid, n_in, density, index)
                own -= _dropped_scales(point, n_in, density)
            bits += own * n_in * n_out
            weights += n_in * n_out
    return bits / weights


def _pattern(family: str, shape: tuple[int, int]) -> Pattern | None:
    if family == "dense":
        return None
    pattern: Any = parse(family)
    try:
        pattern.check(shape)
    except InputError:
        return parse(f"unstructured@{pattern.sparsity}")
    return pattern


def _dropped_scales(point: Point, n_in: int, density: float) -> float:
    """Scales of groups that are dropped whole, which nobody stores."""
    grid, pattern = point.grid, _pattern(point.family, (1 << 20, n_in))
    if grid is None or pattern is None or isinstance(pattern, NM):
        return 0.0
    if not grid.group or getattr(pattern, "unit", (1, 1)) != (1, grid.group):
        return 0.0
    per_group = storage_bits(grid, n_in, 0.0)
    return per_group * (1.0 - density)


def _losses(domains: Mapping[str, Any]) -> dict[str, float]:
    return {name: numbers["loss"] for name, numbers in domains.items()}


def _speeds(results: Mapping[str, Result]) -> dict[tuple[Any, int], float]:
    """Decoding speed-ups by storage type and zeros; one measurement serves all."""
    found = {}
    for result in results.values():
        packed = result.get("packed", {})
        if "decode" in packed:
            kind = packed["decode"]["format"]
            found[kind, _percent(packed)] = packed["decode"]["speedup"]
    return found


def _percent(packed: Mapping[str, Any]) -> int:
    return round(100 * packed.get("sparsity", 0.0))
