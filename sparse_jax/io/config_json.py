"""`config.json` of Hugging Face Llamas, as transformers 4 and 5 write it."""

import json
from pathlib import Path
from typing import Any

from sparse_jax.io import quantization_config
from sparse_jax.models.config import LlamaConfig, RopeConfig
from sparse_jax.types import InputError

FIELDS: dict[str, tuple[str, type, Any]] = {
    "vocab_size": ("vocab_size", int, ...),
    "d_model": ("hidden_size", int, ...),
    "d_ff": ("intermediate_size", int, ...),
    "n_layers": ("num_hidden_layers", int, ...),
    "n_heads": ("num_attention_heads", int, ...),
    "n_kv_heads": ("num_key_value_heads", int, None),
    "head_dim": ("head_dim", int, None),
    "max_seq_len": ("max_position_embeddings", int, 2048),
    "norm_eps": ("rms_norm_eps", float, 1e-6),
    "tie_embeddings": ("tie_word_embeddings", bool, False),
    "attention_bias": ("attention_bias", bool, False),
    "mlp_bias": ("mlp_bias", bool, False),
    "init_std": ("initializer_range", float, 0.02),
    "bos_token_id": ("bos_token_id", int, 1),
    "eos_token_id": ("eos_token_id", int, 2),
}
"""Field of `LlamaConfig` -> (key, type, transformers' default; ... = required)."""

_NULLABLE = ("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id")
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


def load_config(directory: str | Path) -> LlamaConfig:
    """Reads the architecture of a Hugging Face Llama.

    Of several `eos_token_id`s the first is taken.

    Args:
      directory: holds `config.json`.

    Raises:
      InputError: no such directory or file, not JSON, a missing or wrong field, or an
        architecture, activation or RoPE type that is not supported.
    """
    path = Path(directory) / "config.json"
    if not path.parent.is_dir():
        raise InputError(f"{directory}: no such directory")
    if not path.is_file():
        raise InputError(
            f"{directory}: no config.json; a Hugging Face model directory holds "
            "config.json and model.safetensors"
        )
    return config_from_json(read_json(path), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      InputError: the file cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found {values!r:.80}")
    return values


def config_from_json(values: dict[str, Any], where: str = "config.json") -> LlamaConfig:
    """The architecture that a `config.json` describes; raises as `load_config`.

    Example:
      >>> config = config_from_json({
      ...     "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
      ...     "intermediate_size": 172, "num_hidden_layers": 5,
      ...     "num_attention_heads": 8, "rope_theta": 5e5})
      >>> config.d_model, config.rope.theta
      (64, 500000.0)
    """
    _check_supported(values, where)
    if isinstance(values.get("eos_token_id"), list):
        values = values | {"eos_token_id": (values["eos_token_id"] or [None])[0]}
    fields = {
        field: _get(values, key, kind, default, where)
        for field, (key, kind, default) in FIELDS.items()
    }
    try:
        return LlamaConfig(**fields, rope=_rope(values, fields["max_seq_len"], where))
    except InputError as error:
        message = str(error)
        raise InputError(
            message if message.startswith(where) else f"{where}: {message}"
        ) from error


def config_to_json(config: LlamaConfig, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` of a model, with the keys of both transformers 4 and 5.

    Args:
      config: architecture.
      dtype: dtype of the stored weights.
    """
    values: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    for field, (key, _, _) in FIELDS.items():
        value = getattr(config, field)
        # Left out, these two mean "derived", to transformers as to LlamaConfig.
        if value is not None or key not in ("num_key_value_heads", "head_dim"):
            values[key] = value
    kind = config.rope.kind
    scaling = {name: getattr(config.rope, name) for name in _ROPE_FIELDS[kind]}
    if kind == "llama3":
        original = config.rope.original_max_seq_len
        scaling["original_max_position_embeddings"] = original
    values["rope_theta"] = config.rope.theta
    values["rope_parameters"] = {
        "rope_type": kind,
        "rope_theta": config.rope.theta,
        **scaling,
    }
    # Early transformers 4 wants exactly `type` and `factor` for the older kinds.
    type_key = "rope_type" if kind == "llama3" else "type"
    values["rope_scaling"] = None if kind == "default" else {type_key: kind, **scaling}
    return values


def _check_supported(values: dict[str, Any], where: str) -> None:
    model_type = values.get("model_type")
    architectures = values.get("architectures") or ["LlamaForCausalLM"]
    if architectures != ["LlamaForCausalLM"]:
        raise InputError(
            f"{where}: architecture {architectures} is not supported; only "
            "LlamaForCausalLM is"
        )
    if model_type != "llama":
        raise InputError(
            f"{where}: model_type {model_type!r} is not supported; only 'llama' is"
        )
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):  # two names of one function
        raise InputError(
            f"{where}: hidden_act {activation!r} is not supported; only 'silu' is"
        )
    quantization_config.from_json(values, where)  # checks it


def _rope(values: dict[str, Any], max_seq_len: int, where: str) -> RopeConfig:
    # transformers 5 lets rope_scaling, the older key, win where both are given.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    where_rope = f"{where}: {key}"
    if not isinstance(rope, dict) or any(isinstance(v, dict) for v in rope.values()):
        raise InputError(
            f"{where_rope} must be one flat mapping for all layers, found {rope!r}"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_FIELDS:
        raise InputError(
            f"{where_rope}: RoPE type {kind!r} is not supported; supported are "
            f"{list(_ROPE_FIELDS)}"
        )
    rotated = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if rotated not in (None, 1):
        raise InputError(
            f"{where}: partial_rotary_factor {rotated!r} is not supported; only 1 is"
        )
    theta = _get(values, "rope_theta", float, 10_000.0, where)
    fields: dict[str, Any] = {
        name: _get(rope, name, float, ..., where_rope) for name in _ROPE_FIELDS[kind]
    }
    original_key = "original_max_position_embeddings"
    if kind == "llama3":
        original = _get(rope, original_key, int, max_seq_len, where_rope)
        original = _get(values, original_key, int, original, where)
        fields["original_max_seq_len"] = original
    return RopeConfig(
        kind=kind, theta=_get(rope, "rope_theta", float, theta, where_rope), **fields
    )


def _get(values: dict[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    """A field of the right type; `...` as default makes it required."""
    value = values.get(key, default)
    if value is ...:
        raise InputError(f"{where}: field {key!r} is missing")
    if value is None and key in _NULLABLE:
        return None
    if value is None and default is not ...:
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(
            f"{where}: field {key!r} must be {kind.__name__}, found {value!r}"
        )
    return value
