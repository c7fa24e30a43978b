"""`quantization_config` of a `config.json`: which matrices are quantised, and how.

As llm-compressor, vLLM and transformers know it ("compressed-tensors"): config groups
with a scheme each, for the modules that their `targets` name, by exact names, "re:"
with a regular expression or their class, and that `ignore` does not.

Source: https://github.com/vllm-project/compressed-tensors
"""

import dataclasses
import re
from typing import Any, Literal

from sparse_jax.quant import GridConfig
from sparse_jax.quant.grid import BITS
from sparse_jax.types import InputError

METHOD = "compressed-tensors"
PACKED, INTS = "pack-quantized", "int-quantized"
FORMATS = (PACKED, INTS, "naive-quantized")
BITMASK = "sparse-bitmask"

LINEAR = "Linear"
"""The class of all matrices that are read here."""

ROWS = "rows_"
"""How config groups are named whose blocks are whole rows, whatever their length."""

RANGE = {"num_bits": 8, "type": "int", "symmetric": True}
STRATEGY = {"dynamic": "token", "static": "tensor"}
"""How `quant.Activations` of a kind are written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How some matrices are quantised.

    Attributes:
      bits: of a code, 2, 3, 4 or 8.
      group: inputs that share a scale; 0 = all of a row.
      packed: whether codes share words of 32 bits.
      symmetric: no zero points.
      blocks: inputs of a block of one row, where that is what groups are called; 0 =
        they are not. All of a row can be one, too.
      activations: how inputs are rounded, as `quant.Activations` has it; "other" where
        it is in another way; None = not at all.
    """

    bits: int
    group: int
    packed: bool
    symmetric: bool = True
    blocks: int = 0
    activations: Literal["dynamic", "static", "other"] | None = None

    @property
    def grid(self) -> GridConfig:
        """What the codes are."""
        return GridConfig(bits=self.bits, group=self.group, symmetric=self.symmetric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a `config.json` says of a model's weights.

    Attributes:
      groups: (scheme, the modules it is for); nothing where all are floats.
      ignore: modules that are floats whatever the groups say.
      bitmask: whether matrices may lie as bitmasks and the values that are not zero.
    """

    groups: tuple[tuple[Scheme, tuple[str, ...]], ...] = ()
    ignore: tuple[str, ...] = ()
    bitmask: bool = False

    def schemes(self, module: str) -> list[Scheme]:
        """All schemes; those that are for a linear module come first."""
        if any(_rank(target, module) is not None for target in self.ignore):
            return [scheme for scheme, _ in self.groups]
        ranks = {}
        for scheme, targets in self.groups:
            found = [rank for t in targets if (rank := _rank(t, module)) is not None]
            ranks[scheme] = min([ranks.get(scheme, 9), *found])
        return sorted(ranks, key=lambda scheme: ranks[scheme])


def from_json(values: dict[str, Any], where: str) -> Quantization:
    """What a `config.json` says, checked.

    Args:
      values: the file's content.
      where: its name.

    Raises:
      InputError: the weights are quantised in a way that cannot be read.

    Example:
      >>> weights = {"num_bits": 4, "strategy": "group", "group_size": 128}
      >>> config = {"quant_method": "compressed-tensors", "format": "pack-quantized",
      ...           "config_groups": {"a": {"weights": weights, "targets": ["Linear"]}}}
      >>> from_json({"quantization_config": config}, "config.json").groups[0][0].group
      128
    """
    field = "quantization_config"
    if not values.get(field) and values.get("compression_config"):
        field = "compression_config"  # as it was called at first
    config, where = values.get(field), f"{where}: {field}"
    if not config:
        bitmask = _bitmask(values.get("sparsity_config"), where)
        return Quantization(bitmask=bitmask)
    method = METHOD if field == "compression_config" else None
    if isinstance(config, dict):
        method = config.get("quant_method", method)
    if not isinstance(config, dict) or method != METHOD:
        found = method if isinstance(config, dict) else config
        raise InputError(
            f"{where}: quant_method {found!r} is not supported, only {METHOD!r} is; "
            "export the model with llm-compressor, or in float32, float16 or bfloat16"
        )
    for name in ("transform_config", "kv_cache_scheme"):
        if config.get(name):
            raise InputError(f"{where}: {name} is not supported; compress without it")
    bitmask = _bitmask(config.get("sparsity_config"), where)
    groups = config.get("config_groups")
    if not groups and bitmask:
        return Quantization(bitmask=True)
    if not isinstance(groups, dict) or not groups:
        raise InputError(f"{where}: config_groups is missing or empty")
    found = []
    for name, group in groups.items():
        place = f"{where}: config_groups: {name}"
        scheme = _scheme(group, config.get("format"), place)
        if scheme.blocks and name.startswith(ROWS):
            scheme = dataclasses.replace(scheme, group=0)
        found.append((scheme, _names(group.get("targets"), f"{place}: targets")))
    ignore = _names(config.get("ignore"), f"{where}: ignore")
    return Quantization(groups=tuple(found), ignore=ignore, bitmask=bitmask)


def _bitmask(config: Any, where: str) -> bool:
    """Whether a `sparsity_config` means bitmasks."""
    format = config.get("format") if isinstance(config, dict) else config
    if not config or format == "dense":
        return False
    if format != BITMASK:
        raise InputError(
            f"{where}: sparsity_config is not supported with format {format!r}; only "
            f"'dense' and {BITMASK!r} are: compress without it"
        )
    return True


def _names(found: Any, where: str) -> tuple[str, ...]:
    names = tuple(found) if isinstance(found, list) else ()
    if found is not None and not (
        isinstance(found, list) and all(isinstance(name, str) for name in names)
    ):
        raise InputError(f"{where} must be a list of names, found {found!r:.80}")
    for name in names:
        try:
            re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
        except re.error as error:
            raise InputError(f"{where}: {name!r} is no regular expression") from error
    return names


def _rank(target: str, module: str) -> int | None:
    """How closely a target names a linear module, 0 = exactly; None = not at all."""
    if target == module:
        return 0
    if target.startswith("re:") and re.match(target.removeprefix("re:"), module):
        return 1
    return 2 if target == LINEAR else None


def _scheme(group: Any, format: Any, where: str) -> Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise InputError(f"{where}: expected the scheme of its weights, found {group}")
    format = group.get("format") or format
    if format not in FORMATS:
        raise InputError(
            f"{where}: format {format!r} is not supported; expected one of {FORMATS}"
        )
    found = {
        "type": weights.get("type", "int"),
        "symmetric": weights.get("symmetric", True),
        "num_bits": weights.get("num_bits", 8),
        "strategy": weights.get("strategy")
        or ("group" if weights.get("group_size") else "channel"),
        "actorder": weights.get("actorder") or None,
    }
    allowed: dict[str, tuple[Any, ...]] = {
        "type": ("int",),
        "symmetric": (True, False),
        "num_bits": BITS if format == PACKED else (8,),
        "strategy": ("group", "channel", "tensor", "block"),
        "actorder": (None, "weight", "static"),  # those that change no layout
    }
    if found["strategy"] == "tensor":
        allowed["symmetric"] = (True,)
    for name, value in found.items():
        if value not in allowed[name]:
            raise InputError(
                f"{where}: weights of {name} {value!r} are not supported in "
                f"{format}; expected one of {allowed[name]}"
            )
    return Scheme(
        bits=found["num_bits"],
        group=(width := _width(weights, found["strategy"], where)),
        packed=format == PACKED,
        symmetric=found["symmetric"],
        blocks=width if found["strategy"] == "block" else 0,
        activations=_activations(group.get("input_activations")),
    )


def _width(weights: dict[str, Any], strategy: str, where: str) -> int:
    """Inputs that share a scale; 0 = all of a row."""
    size = weights.get("group_size")
    if strategy == "block":
        block = weights.get("block_structure")
        if not isinstance(block, list) or len(block) != 2 or block[0] != 1:
            raise InputError(
                f"{where}: block_structure must be [1, inputs], found {block!r}"
            )
        size = block[1]
    if strategy in ("channel", "tensor") or (strategy == "group" and size == -1):
        return 0
    if type(size) is not int or size < 1:
        raise InputError(f"{where}: group_size must be at least 1, found {size!r}")
    return size


def _activations(inputs: Any) -> Literal["dynamic", "static", "other"] | None:
    if not inputs:
        return None
    kinds: dict[Any, Literal["dynamic", "static"]] = {True: "dynamic", False: "static"}
    if isinstance(inputs, dict):
        for dynamic, kind in kinds.items():
            known = RANGE | {"dynamic": dynamic, "strategy": STRATEGY[kind]}
            found = {"strategy": "tensor", "dynamic": False} | RANGE | inputs
            if {key: found.get(key) for key in known} == known:
                return kind
    return "other"
