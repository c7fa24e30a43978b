"""Writes checkpoints whose linear matrices are codes and scales."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from sparse_jax.io import config_to_json, names, safetensors_file
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.safetensors_file import DTYPES, Tensor
from sparse_jax.models import LlamaConfig

BF16 = np.dtype(ml_dtypes.bfloat16)
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was written: codes and scales by tensor name."""

    codes: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]

    def weights(self, name: str) -> np.ndarray:
        """code * scale, float32."""
        codes, scales = self.codes[name], self.scales[name].astype(np.float32)
        return codes * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)


def pack_words(codes_OI: np.ndarray, bits: int) -> np.ndarray:
    """Codes in words of 32 bits, one at a time; some lie in two words."""
    n_out, n_in = codes_OI.shape
    words = np.zeros((n_out, -(-n_in * bits // 32)), np.uint32)
    for column in range(n_in):
        field = (codes_OI[:, column].astype(np.int64) + (1 << bits - 1)).astype("u8")
        word, shift = divmod(bits * column, 32)
        words[:, word] |= (field << np.uint64(shift)).astype(np.uint32)
        if shift + bits > 32:
            words[:, word + 1] |= (field >> np.uint64(32 - shift)).astype(np.uint32)
    return words.view(np.int32)


def scheme(bits: int = 8, group: int = 0, format: str = "int-quantized") -> dict:
    """A `quantization_config`."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "channel",
        "group_size": group or None,
    }
    targets = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": targets},
        "ignore": ["lm_head"],
    }


def write(
    directory: Path,
    config: LlamaConfig,
    quantization: dict,
    *,
    kept=None,
    scale_dtype=BF16,
    changes=lambda tensors: tensors,
) -> Quantized:
    """Writes a random model.

    Args:
      directory: a new one.
      config: architecture.
      quantization: see `scheme`.
      kept: (out, in) -> mask of the codes that are not 0; None = all.
      scale_dtype: of the stored scales; their values are bfloat16 numbers.
      changes: what is done to the tensors, by name, before they are written.
    """
    weights = quantization["config_groups"]["group_0"]["weights"]
    bits, group = weights["num_bits"], weights["group_size"]
    rng, tensors = np.random.default_rng(0), {}
    found = Quantized(codes={}, scales={})
    for path, leaf_shape in leaf_shapes(config).items():
        for slot in names.slots([path], range(config.n_layers)):
            shape = names.slot_shape(slot, leaf_shape)
            name = slot.name
            if not (slot.transposed and slot.layer is not None):
                values = rng.standard_normal(shape, np.float32)
                tensors[name] = (1 + 0.1 * values).astype(BF16)
                continue
            limit = 1 << (bits - 1)
            codes = rng.integers(-limit, limit, shape).astype(np.int8)
            if kept is not None:
                codes = np.where(codes == 0, np.int8(1), codes) * kept(shape)
            scales = 2.0 ** -rng.integers(
                5, 9, (shape[0], shape[1] // (group or shape[1]))
            )
            scales = (scales * 1.5).astype(scale_dtype)
            found.codes[name], found.scales[name] = codes, scales
            if quantization["format"] == "pack-quantized":
                tensors[f"{name}_packed"] = pack_words(codes, bits)
                tensors[f"{name}_shape"] = np.array(shape, np.int64)
            else:
                tensors[name] = codes
            tensors[f"{name}_scale"] = scales
    directory.mkdir()
    values = config_to_json(config, "bfloat16") | {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(values))
    tensors = changes(tensors)
    safetensors_file.write(
        directory / "model.safetensors",
        [
            Tensor(name, _CODES[a.dtype], a.shape, lambda a=a: [a])
            for name, a in tensors.items()
        ],
        {},
    )
    return found
