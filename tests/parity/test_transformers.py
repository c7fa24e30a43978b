"""Live comparison with transformers, wherever torch is installed."""

import functools
import json

import jax
import numpy as np
import parity_cases as cases
import pytest

from sparse_jax import io
from sparse_jax.models import LlamaConfig, RopeConfig, forward, init

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

LLAMA3 = RopeConfig(
    kind="llama3",
    theta=100.0,
    factor=8.0,
    high_freq_factor=3.0,
    original_max_seq_len=16,
)
CONFIGS = {
    "plain": {},
    "gqa_tied": {"n_kv_heads": 2, "tie_embeddings": True, "norm_eps": 1e-3},
    "biases_head_dim": {"attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "linear": {"rope": RopeConfig(kind="linear", theta=100.0, factor=2.0)},
    "dynamic": {"rope": RopeConfig(kind="dynamic", theta=100.0, factor=2.0)},
    "llama3": {"rope": LLAMA3, "bos_token_id": 5, "eos_token_id": None},
}


def config_of(name: str) -> LlamaConfig:
    shape = {"vocab_size": 64, "d_model": 32, "d_ff": 48, "n_layers": 2, "n_heads": 4}
    return LlamaConfig(**shape, max_seq_len=32, init_std=0.2, **CONFIGS[name])


def random_params(config: LlamaConfig) -> dict:
    """`init`, with biases and norms that are not trivial."""
    keys = iter(jax.random.split(jax.random.key(1), 64))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape),
        init(jax.random.key(0), config),
    )


@functools.partial(jax.jit, static_argnums=2)
def jitted(params, tokens_BT, config):
    return forward(params, tokens_BT, config)


def our_logits(params, tokens, config) -> np.ndarray:
    return np.asarray(jitted(params, tokens, config))


def their_logits(directory, tokens, **options) -> np.ndarray:
    options = {"dtype": torch.float32, "attn_implementation": "eager", **options}
    model, problems = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True, **options
    )
    # `not any` of missing, unexpected and mismatched tensors
    assert not any(problems.values()), problems
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_loads_the_export_and_agrees(name, shard_bytes, tmp_path):
    config = config_of(name)
    params = random_params(config)
    io.save(tmp_path / "out", params, config, max_shard_bytes=shard_bytes)
    length = 48 if name == "dynamic" else 24
    tokens = np.random.default_rng(0).integers(0, 64, (2, length), dtype=np.int32)
    found = our_logits(params, tokens, config)
    cases.assert_agree(found, their_logits(tmp_path / "out", tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_survives_transformers(name, tmp_path):
    """Our config.json, read and written by transformers, is the same model."""
    config = config_of(name)
    io.save(tmp_path / "ours", init(jax.random.key(0), config), config)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert theirs.num_key_value_heads == config.kv_heads
    assert theirs.head_dim == config.head_width
    assert theirs.rms_norm_eps == config.norm_eps
    assert theirs.dtype in ("float32", torch.float32)
    theirs.architectures = ["LlamaForCausalLM"]
    theirs.save_pretrained(tmp_path / "theirs")
    found = io.load_config(tmp_path / "theirs")
    for field in ("kv_heads", "head_width"):
        assert getattr(found, field) == getattr(config, field)
    # Written out in full by transformers, None here: the same numbers.
    skip = {"n_kv_heads", "head_dim"}
    for field in set(vars(config)) - skip:
        assert getattr(found, field) == getattr(config, field), field


@pytest.mark.parametrize("case", cases.CASES)
def test_a_model_saved_by_transformers_loads(case, tmp_path):
    directory = cases.write(case, tmp_path / "case")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    config = io.load_config(tmp_path / "saved")
    tokens = cases.tokens(case)
    found = our_logits(io.load(tmp_path / "saved"), tokens, config)
    cases.assert_agree(found, their_logits(directory, tokens))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_agree(dtype, tmp_path):
    config = config_of("gqa_tied")
    io.save(tmp_path / "out", random_params(config), config, dtype=dtype)
    tokens = np.arange(16, dtype=np.int32)[None]
    found = our_logits(io.load(tmp_path / "out"), tokens, config)
    cases.assert_agree(found, their_logits(tmp_path / "out", tokens))
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["dtype"] == stored["torch_dtype"] == dtype


@pytest.mark.parametrize("name", cases.REAL)
def test_real_models_agree(name, shared_data, tmp_path):
    model = io.resolve(shared_data / name)
    tokens = cases.real_tokens()
    found = our_logits(model.params, tokens, model.config)
    cases.assert_agree(found, their_logits(shared_data / name, tokens))
    files = model.tokenizer.files
    io.save(tmp_path / "out", model.params, model.config, tokenizer_files=files)
    cases.assert_agree(found, their_logits(tmp_path / "out", tokens))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Once upon a time"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids == model.tokenizer.encode(text).tolist()
