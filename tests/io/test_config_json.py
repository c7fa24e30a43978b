import dataclasses
import json

import pytest

from sparse_jax import io
from sparse_jax.models import LlamaConfig, RopeConfig, sizes
from sparse_jax.types import InputError

SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read(**changes) -> LlamaConfig:
    return io.config_from_json(SHAPE | changes)


@pytest.mark.parametrize("name", sizes.SIZES)
def test_every_size_survives(name, tmp_path):
    values = io.config_to_json(sizes.get(name))
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert io.load_config(tmp_path) == sizes.get(name)


@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3"])
def test_every_field_survives(kind):
    rope = {"kind": kind, "theta": 123.0}
    if kind != "default":
        rope["factor"] = 2.5
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.5, "high_freq_factor": 3.0}
        rope["original_max_seq_len"] = 99
    config = LlamaConfig(
        vocab_size=11,
        d_model=24,
        d_ff=13,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        head_dim=10,
        max_seq_len=77,
        rope=RopeConfig(**rope),
        norm_eps=1e-3,
        tie_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        init_std=0.5,
        bos_token_id=None,
        eos_token_id=7,
    )
    default = LlamaConfig(vocab_size=1, d_model=2, d_ff=1, n_layers=1, n_heads=1)
    for field in dataclasses.fields(
        config
    ):  # a field left at its default proves little
        if field.name != "rope":
            assert getattr(config, field.name) != getattr(default, field.name)
    assert io.config_from_json(io.config_to_json(config)) == config


def test_the_defaults_are_those_of_transformers():
    config = read()
    assert config == LlamaConfig(
        vocab_size=512, d_model=64, d_ff=172, n_layers=5, n_heads=8, norm_eps=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope_theta": 5}, RopeConfig(theta=5.0)),
        ({"rope_theta": 5, "rope_scaling": None}, RopeConfig(theta=5.0)),
        (
            {"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2}},
            RopeConfig(kind="linear", theta=5.0, factor=2.0),
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            RopeConfig(kind="dynamic", factor=2.0),
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            RopeConfig(theta=7.0),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 7.0, **LLAMA3}},
            RopeConfig(kind="llama3", theta=7.0, factor=8.0, original_max_seq_len=2048),
        ),
        (
            {
                "rope_theta": 7.0,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "original_max_position_embeddings": 64,
                    **LLAMA3,
                },
            },
            RopeConfig(kind="llama3", theta=7.0, factor=8.0, original_max_seq_len=64),
        ),
    ],
)
def test_rope_keys_of_both_versions(changes, rope):
    assert read(**changes).rope == rope


def test_the_first_of_several_eos_tokens_is_taken():
    assert read(eos_token_id=[128001, 128008]).eos_token_id == 128001
    assert read(eos_token_id=None).eos_token_id is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral' is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["LlamaModel"]}, r"\['LlamaModel'\] is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": ["a"]}}, "not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
        ({"rope_parameters": {"full_attention": {}}}, "must be one flat mapping"),
        ({"rope_scaling": "linear"}, "must be one flat mapping"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_theta": "big"}, "'rope_theta' must be float, found 'big'"),
        ({"rope_theta": 0.0}, "rope.theta"),
        ({"num_hidden_layers": "5"}, "'num_hidden_layers' must be int, found '5'"),
        ({"num_hidden_layers": 0}, "n_layers must be >= 1, got 0"),
        ({"num_key_value_heads": 0}, "n_kv_heads must be >= 1, got 0"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"head_dim": -2}, "head_dim"),
        ({"max_position_embeddings": 0}, "max_seq_len"),
        ({"hidden_size": None}, "'hidden_size' must be int, found None"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' must be bool"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quant_method 'gptq' is not",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message) as error:
        read(**changes)
    assert str(error.value).startswith("config.json")


def test_a_missing_field_is_named():
    values = {key: value for key, value in SHAPE.items() if key != "hidden_size"}
    with pytest.raises(InputError, match="field 'hidden_size' is missing"):
        io.config_from_json(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no config\.json"),
        ("{", r"config\.json: not valid JSON"),
        ("[1]", r"config\.json: expected a JSON object"),
        ("[" * 100_000, r"config\.json: not valid JSON"),
    ],
)
def test_a_bad_file_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        io.load_config(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match="gone: no such directory"):
        io.load_config(tmp_path / "gone")
