"""Quantised checkpoints as llm-compressor and vLLM keep them ("compressed-tensors").

A linear matrix `NAME.weight` [out, in] is stored as codes and scales,

    w = code * scale

    int-quantized, naive-quantized  NAME.weight         I8 [out, in]
    pack-quantized                  NAME.weight_packed  I32 [out, ceil(in * bits / 32)]:
                                    code + 2^(bits - 1), the first in the lowest bits
                                    NAME.weight_shape   I64 or I32 [2]: out, in
    all                             NAME.weight_scale   float [out, scales]: one for
                                    each row or each group of inputs; or one for all

with 4 or 8 bits, symmetric, as `quantization_config` in config.json says. How a runtime
quantises activations is not part of the weights and is not read.

Source: https://github.com/vllm-project/compressed-tensors
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Int8

from sparse_jax.io.safetensors_file import FLOATS, Entry
from sparse_jax.types import InputError

METHOD = "compressed-tensors"
FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How some matrices are quantised.

    Attributes:
      bits: of a code, 4 or 8.
      group: inputs that share a scale; 0 = all of a row.
      packed: whether codes share words of 32 bits.
    """

    bits: int
    group: int
    packed: bool


def schemes(values: dict[str, Any], where: str) -> tuple[Scheme, ...]:
    """The schemes of a `config.json`; none for a checkpoint in floats.

    Args:
      values: the file's content.
      where: its name.

    Raises:
      InputError: the weights are quantised in a way that cannot be read.

    Example:
      >>> weights = {"num_bits": 4, "strategy": "group", "group_size": 128}
      >>> config = {"quant_method": "compressed-tensors", "format": "pack-quantized",
      ...           "config_groups": {"group_0": {"weights": weights}}}
      >>> schemes({"quantization_config": config}, "config.json")
      (Scheme(bits=4, group=128, packed=True),)
    """
    config = values.get("quantization_config")
    if not config:
        return ()
    where = f"{where}: quantization_config"
    method = config.get("quant_method") if isinstance(config, dict) else config
    if method != METHOD:
        raise InputError(
            f"{where}: quant_method {method!r} is not supported, only {METHOD!r} is; "
            "export the model with llm-compressor, or in float32, float16 or bfloat16"
        )
    for name in ("transform_config", "sparsity_config"):
        if config.get(name):
            raise InputError(f"{where}: {name} is not supported; compress without it")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise InputError(f"{where}: config_groups is missing or empty")
    found = [
        _scheme(group, config.get("format"), f"{where}: config_groups: {name}")
        for name, group in groups.items()
    ]
    return tuple(dict.fromkeys(found))


def _scheme(group: Any, format: Any, where: str) -> Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise InputError(f"{where}: expected the scheme of its weights, found {group}")
    format = group.get("format") or format
    if format not in FORMATS:
        raise InputError(
            f"{where}: format {format!r} is not supported; expected one of {FORMATS}"
        )
    bits, group_size = weights.get("num_bits", 8), weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if group_size else "channel")
    found = {
        "type": weights.get("type", "int"),
        "symmetric": weights.get("symmetric", True),
        "num_bits": bits,
        "strategy": strategy,
    }
    allowed = {
        "type": ("int",),
        "symmetric": (True,),
        "num_bits": (4, 8) if format == "pack-quantized" else (8,),
        "strategy": ("group", "channel", "tensor"),
    }
    for name, value in found.items():
        if value not in allowed[name]:
            raise InputError(
                f"{where}: weights of {name} {value!r} are not supported in "
                f"{format}; expected one of {allowed[name]}"
            )
    width = 0
    if strategy == "group" and group_size != -1:
        if type(group_size) is not int or group_size < 1:
            raise InputError(
                f"{where}: group_size must be at least 1, found {group_size!r}"
            )
        width = group_size
    return Scheme(bits=bits, group=width, packed=format == "pack-quantized")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedEntry(Entry):
    """A matrix that is stored as codes and scales; as an `Entry`, it is w in float32.

    Attributes:
      stored: where the codes lie.
      scales: where the scales lie.
      scheme: how it is quantised.
    """

    stored: Entry
    scales: Entry
    scheme: Scheme

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales in the file."""
        return self.stored.nbytes + self.scales.nbytes

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "rows in"]:
        """The rows [start, stop) of w; raises as `panels`."""
        codes_OI, scales_OS = self.codes(start, stop), self.row_scales(start, stop)
        width = self.scheme.group or self.shape[1]
        scales_OI = np.repeat(scales_OS, width, axis=1)[:, : self.shape[1]]
        return codes_OI * scales_OI

    def take(self, ids: np.ndarray) -> Float32[np.ndarray, "rows in"]:
        """The rows of w at increasing `ids`; raises as `panels`."""
        return np.concatenate([self.rows(i, i + 1) for i in ids.tolist()])

    def read(self) -> Float32[np.ndarray, "out in"]:
        """The whole matrix; raises as `panels`."""
        return self.rows(0, self.shape[0])

    def codes(self, start: int, stop: int) -> Int8[np.ndarray, "rows in"]:
        """The codes of the rows [start, stop), as they are; raises as `panels`."""
        stored = self.stored.rows(start, stop)
        if not self.scheme.packed:
            return stored
        raw = stored.view(np.uint8)  # words are little-endian: bytes are in order
        if self.scheme.bits == 8:
            return (raw[:, : self.shape[1]] ^ 128).view(np.int8)
        nibbles = np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
        return nibbles[:, : self.shape[1]].view(np.int8) - np.int8(8)

    def row_scales(self, start: int, stop: int) -> Float32[np.ndarray, "rows scales"]:
        """The scales of the rows [start, stop); raises as `panels`."""
        if math.prod(self.scales.shape) == 1:  # for the whole matrix
            return np.full((stop - start, 1), self.scales.read(), np.float32)
        scales = self.scales.rows(start, stop).astype(np.float32)
        return scales.reshape(stop - start, -1)


def take_quantized(
    entries: dict[str, Entry],
    name: str,
    shape: tuple[int, ...],
    known: tuple[Scheme, ...],
) -> QuantizedEntry | None:
    """Takes the tensors of one matrix out of those of a checkpoint.

    Args:
      entries: tensor name -> where it lies; those that are used are removed.
      name: "NAME.weight".
      shape: (out, in) of the matrix.
      known: see `schemes`.

    Returns:
      The matrix; None where it is not quantised.

    Raises:
      InputError: its tensors do not fit the shape or any scheme.
    """
    packed = f"{name}_packed" in entries
    stored = entries.get(f"{name}_packed") or entries.get(name)
    if stored is None or (stored.dtype in FLOATS and not packed):
        return None
    scales, sizes = entries.get(f"{name}_scale"), entries.get(f"{name}_shape")
    if scales is None or (packed and sizes is None):
        missing = f"{name}_scale" if scales is None else f"{name}_shape"
        raise InputError(f"{stored.file}: tensor {missing!r} is missing")
    scheme = next((one for one in known if _fits(one, shape, stored, scales)), None)
    if scheme is None:
        raise InputError(
            f"{stored.file}: tensor {stored.name!r} of {stored.dtype} "
            f"{list(stored.shape)} with scales of {scales.dtype} "
            f"{list(scales.shape)} is no matrix {list(shape)} of any scheme that "
            f"config.json names: {list(known)}"
        )
    if sizes is not None:
        _check_shape(sizes, shape)
    for used in (stored, scales, sizes):
        if used is not None:
            del entries[used.name]
    return QuantizedEntry(
        file=stored.file,
        name=name,
        dtype="F32",
        shape=shape,
        offset=stored.offset,
        stored=stored,
        scales=scales,
        scheme=scheme,
    )


def _fits(scheme: Scheme, shape: tuple[int, ...], stored: Entry, scales: Entry) -> bool:
    """Whether tensors have the dtypes and shapes that a scheme gives a matrix."""
    n_out, n_in = shape
    codes = "I8", shape
    if scheme.packed:
        codes = "I32", (n_out, -(-n_in * scheme.bits // 32))
    count = -(-n_in // (scheme.group or n_in))
    expected = [(n_out, count)]
    if not scheme.group:
        expected += [(n_out,), (), (1,), (1, 1)]
    fitting = scales.shape in expected and scales.dtype in FLOATS
    return fitting and (stored.dtype, stored.shape) == codes


def _check_shape(sizes: Entry, shape: tuple[int, ...]) -> None:
    found = sizes.read().tolist() if sizes.shape == (2,) else list(sizes.shape)
    if sizes.dtype not in ("I64", "I32") or found != list(shape):
        raise InputError(
            f"{sizes.file}: tensor {sizes.name!r} must hold {list(shape)}, found "
            f"{found} of {sizes.dtype}"
        )
