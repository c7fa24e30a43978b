"""Quantised directories that transformers loads: the same weights and logits."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest

from sparse_jax import io, quant
from sparse_jax.io import names
from sparse_jax.io.names import LINEAR_KERNELS
from sparse_jax.models import LlamaConfig, forward, init
from sparse_jax.quant import Activations, GridConfig
from sparse_jax.tree import from_paths, leaf_paths

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    d_ff=44,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    init_std=0.2,
    tie_embeddings=True,
)
GRIDS = {
    "int8": GridConfig(bits=8, group=0),
    "int8_zeros": GridConfig(bits=8, group=0, symmetric=False),
    "int8_ragged_zeros": GridConfig(bits=8, group=16, symmetric=False),
    "int4": GridConfig(bits=4, group=4),
    "int4_ragged": GridConfig(bits=4, group=16),
    "int4_zeros": GridConfig(bits=4, group=4, symmetric=False),
    "int3": GridConfig(bits=3, group=4),
    "int3_rows_zeros": GridConfig(bits=3, group=0, symmetric=False),
    "int2_ragged": GridConfig(bits=2, group=32),
    "int2_zeros": GridConfig(bits=2, group=4, symmetric=False),
}


@functools.partial(jax.jit, static_argnums=2)
def on_grid(leaf, mask, config):
    grid = quant.fit(leaf, config, mask, axis=-2)
    return jnp.where(mask, quant.round_to_grid(leaf, grid, axis=-2), 0), grid


@functools.partial(jax.jit, static_argnums=2)
def jitted(params, tokens_BT, config):
    return forward(params, tokens_BT, config)


def our_logits(params, tokens, config):
    return np.asarray(jitted(params, tokens, config))


def quantize(params, config_of):
    """Half of the weights of each linear pruned, the others on a grid."""
    rng, leaves, grids = np.random.default_rng(0), leaf_paths(params), {}
    masks = dict.fromkeys(leaves)
    for path, leaf in leaves.items():
        if not re.fullmatch(LINEAR_KERNELS, path) or config_of(path) is None:
            continue
        masks[path] = mask = jnp.asarray(rng.random(leaf.shape) < 0.5)
        leaves[path], grid = on_grid(leaf, mask, config_of(path))
        grid = jax.tree.map(np.asarray, grid)
        for layer in range(len(leaf)):
            own = jax.tree.map(lambda x, i=layer: jnp.asarray(x[i]), grid)
            grids[path, layer] = own
    return from_paths(leaves), {"masks": from_paths(masks), "grids": grids}


def load(directory):
    model, problems = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not any(problems.values()), problems
    return model


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def assert_same_weights(model, params, config):
    """After its first call, which decompresses: every weight and every zero."""
    for path, leaf in leaf_paths(params).items():
        if re.fullmatch(LINEAR_KERNELS, path):
            for slot in names.slots([path], range(config.n_layers)):
                theirs = model.get_submodule(slot.name.removesuffix(".weight")).weight
                ours = np.asarray(leaf[slot.layer]).T
                assert np.array_equal(theirs.detach().numpy(), ours), slot.name


def assert_agree(found, expected):
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def tokens_of(config, length=24):
    rng = np.random.default_rng(1)
    return rng.integers(0, config.vocab_size, (2, length), dtype=np.int32)


def check(directory, params, config, options):
    io.save(directory, params, config, **options)
    model, tokens = load(directory), tokens_of(config)
    theirs = logits_of(model, tokens)
    assert_same_weights(model, params, config)
    assert_agree(theirs, our_logits(params, tokens, config))


@pytest.mark.parametrize("name", GRIDS)
def test_weights_and_logits_are_the_same(name, tmp_path):
    params, options = quantize(init(jax.random.key(0), CONFIG), lambda _: GRIDS[name])
    check(tmp_path / "a", params, CONFIG, options)


def test_several_schemes_in_one_model(tmp_path):
    def config_of(path):
        if "attention/v" in path:
            return None
        return GRIDS["int8" if "attention" in path else "int3_rows_zeros"]

    params, options = quantize(init(jax.random.key(0), CONFIG), config_of)
    check(tmp_path / "a", params, CONFIG, options)


def test_several_files(tmp_path):
    params, options = quantize(
        init(jax.random.key(0), CONFIG), lambda _: GRIDS["int4_zeros"]
    )
    check(tmp_path / "a", params, CONFIG, options | {"max_shard_bytes": 5000})
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_transformers_rounds_the_inputs_too(name, kind, tmp_path):
    """Its dynamic scale is max|x| / 127.5, where ours is max|x| / 127."""
    params, options = quantize(init(jax.random.key(0), CONFIG), lambda _: GRIDS[name])
    scales = {key: 0.03125 for key in options["grids"] if kind == "static"}
    activations = Activations(kind=kind, scales=scales)
    io.save(tmp_path / "a", params, CONFIG, activations=activations, **options)
    model, tokens = load(tmp_path / "a"), tokens_of(CONFIG)
    rounded = logits_of(model, tokens)
    assert_same_weights(model, params, CONFIG)
    # One linear by itself, by the stated scale.
    linear = model.get_submodule("model.layers.1.mlp.up_proj")
    x = np.random.default_rng(2).standard_normal((1, 3, 32)).astype(np.float32)
    scale = np.float32(0.03125)
    if kind == "dynamic":
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127.5)
    codes = np.clip(np.rint(x / scale), -128, 127)
    weight = np.asarray(params["layers"]["mlp"]["up"]["kernel"][1])
    with torch.no_grad():
        found = linear(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, codes * scale @ weight, rtol=1e-4, atol=1e-4)
    # Without that rounding, the logits of the weights.
    for module in model.modules():
        module.quantization_enabled = False
    plain = logits_of(model, tokens)
    assert_agree(plain, our_logits(params, tokens, CONFIG))
    assert np.abs(rounded - plain).max() > 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("name", "bits"),
    [*zip(cases.REAL, (8, 4), strict=True), *zip(cases.REAL, (2, 3), strict=True)],
)
def test_real_models(name, bits, shared_data, tmp_path):
    """Of 64 and 128 inputs and of 172 or 352: with ragged groups and without."""
    model = io.resolve(shared_data / name)
    config = GridConfig(bits=bits, group=0 if bits == 8 else 64, symmetric=bits > 3)
    params, options = quantize(model.params, lambda _: config)
    io.save(tmp_path / "a", params, model.config, **options)
    theirs, tokens = load(tmp_path / "a"), cases.real_tokens()
    found = logits_of(theirs, tokens)
    assert_same_weights(theirs, params, model.config)
    assert_agree(found, our_logits(params, tokens, model.config))
