"""Tiny random Llamas that cover every model option, built without torch.

Both sides of the comparison build their weights here. The tensors of a case are listed
in the order of `tensor_shapes`; each is drawn in that order from one NumPy generator
seeded with the case's number, as float32: norm weights 1 + 0.1 n, biases 0.1 n, the
embedding 0.5 n and matrices 0.2 n, where n is standard normal.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden.npz"

_BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _v4(kind: str, **scaling) -> dict:
    return {"rope_theta": 100.0, "rope_scaling": {"rope_type": kind, **scaling}}


def _v5(kind: str, **scaling) -> dict:
    parameters = {"rope_type": kind, "rope_theta": 100.0, **scaling}
    return {"rope_parameters": parameters, "dtype": "float32"}


CASES: dict[str, dict] = {
    name: {**_BASE, **changes}
    for name, changes in {
        "plain": {},
        "gqa": {"num_key_value_heads": 2},
        "one_kv_head": {"num_key_value_heads": 1},
        "head_dim": {"head_dim": 16, "num_key_value_heads": 2},
        "tied": {"tie_word_embeddings": True},
        "attention_bias": {"attention_bias": True, "num_key_value_heads": 2},
        "mlp_bias": {"mlp_bias": True},
        "norm_eps": {"rms_norm_eps": 0.3},
        "rope_theta": {"rope_theta": 50.0},
        "rope_default_v5": _v5("default"),
        "rope_linear": _v4("linear", factor=4.0),
        "rope_linear_v5": _v5("linear", factor=4.0),
        "rope_dynamic_short": _v4("dynamic", factor=3.0),
        "rope_dynamic_long": _v4("dynamic", factor=3.0),
        "rope_llama3": _v4("llama3", **_LLAMA3),
        "rope_llama3_v5": _v5("llama3", **_LLAMA3),
        "everything": {
            **_v5("llama3", **_LLAMA3),
            "num_key_value_heads": 2,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    }.items()
}
"""Name -> config.json; transformers 4 keys and transformers 5 keys."""

REAL = ("stories260K-hf", "babyllama-hf")
"""Real models in shared/data."""


def tokens(case: str) -> np.ndarray:
    """Token ids [2, T]; longer than max_position_embeddings for rope_dynamic_long."""
    length = 48 if case == "rope_dynamic_long" else 20
    return np.random.default_rng(7).integers(0, 64, (2, length), dtype=np.int32)


def real_tokens() -> np.ndarray:
    """Token ids [1, 200] within the vocabulary of both real models."""
    return np.random.default_rng(8).integers(3, 105, (1, 200), dtype=np.int32)


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a case, as transformers has them."""
    D, F, V = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    heads = config["num_attention_heads"]
    width = config.get("head_dim", D // heads)
    E, K = heads * width, config.get("num_key_value_heads", heads) * width
    shapes = {"model.embed_tokens.weight": (V, D)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (D,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (D,)
        linears = {"q": (E, D), "k": (K, D), "v": (K, D), "o": (D, E)}
        for name, shape in linears.items():
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = shape
            if config.get("attention_bias"):
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = shape[:1]
        for name, shape in {"gate": (F, D), "up": (F, D), "down": (D, F)}.items():
            shapes[f"{layer}.mlp.{name}_proj.weight"] = shape
            if config.get("mlp_bias"):
                shapes[f"{layer}.mlp.{name}_proj.bias"] = shape[:1]
    shapes["model.norm.weight"] = (D,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (V, D)
    return shapes


def weights(case: str) -> dict[str, np.ndarray]:
    """Name -> float32 tensor of a case."""
    rng = np.random.default_rng(list(CASES).index(case))
    made = {}
    for name, shape in tensor_shapes(CASES[case]).items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            made[name] = 1 + np.float32(0.1) * noise
        elif name.endswith("bias"):
            made[name] = np.float32(0.1) * noise
        else:
            made[name] = np.float32(0.5 if "embed" in name else 0.2) * noise
    return made


def write(case: str, directory: Path) -> Path:
    """Writes a case as a Hugging Face directory, with nothing of this package."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CASES[case]))
    save_file(weights(case), directory / "model.safetensors", {"format": "pt"})
    return directory


def assert_agree(found: np.ndarray, expected: np.ndarray) -> None:
    """At most 1e-4 x max(1, max |logit|) apart: the project's parity bar."""
    assert found.shape == expected.shape
    difference = np.abs(found - expected).max()
    assert difference <= 1e-4 * max(1.0, np.abs(expected).max()), difference
