import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import ops, quant
from sparse_jax.kernels import pack
from sparse_jax.kernels.quantize import quantize_activations
from sparse_jax.models import (
    Compute,
    LlamaConfig,
    block,
    embed,
    forward,
    head,
    init,
)
from sparse_jax.models.layers import rms_norm
from sparse_jax.quant import Activations, GridConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    d_ff=48,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=32,
    attention_bias=True,
    init_std=0.2,
)
INT8 = GridConfig(bits=8, group=0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 12)), jnp.int32)
RNG = np.random.default_rng(1)


def linears(params):
    return [p for p in leaf_paths(params["layers"], "layers/") if p.endswith("kernel")]


@pytest.fixture(scope="module")
def rounded():
    """Params on an int8 grid, half of each matrix pruned, and the grids."""
    leaves, grids = leaf_paths(init(jax.random.key(0), CONFIG)), {}
    for path in linears(from_paths(leaves)):
        kernel = leaves[path]
        kernel = jnp.where(jnp.abs(kernel) > jnp.median(jnp.abs(kernel)), kernel, 0)
        grid = quant.fit(kernel, INT8, axis=-2)
        leaves[path] = quant.round_to_grid(kernel, grid, axis=-2)
        for layer in range(CONFIG.n_layers):
            grids[path, layer] = jax.tree.map(lambda leaf, i=layer: leaf[i], grid)
    return from_paths(leaves), grids


def packed_logits(params, format):
    """As the engine computes them, block by block."""
    x = embed(params, TOKENS)
    for index in range(CONFIG.n_layers):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], params["layers"])
        leaves = leaf_paths(layer)
        for path in (p for p in leaves if p.endswith("kernel")):
            leaves[path] = pack(format, np.asarray(leaves[path]).T)
        x, _ = block(from_paths(leaves), x, CONFIG)
    x = rms_norm(x, params["final_norm"]["scale"], CONFIG.norm_eps)
    return x @ head(params, x.dtype)


def test_dynamic_rounding_is_that_of_the_int8_kernels():
    x = jnp.asarray(RNG.normal(size=(2, 3, 20)), jnp.float32).at[0, 1].set(0)
    w = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)
    codes, scale = quantize_activations(x.reshape(6, 20))
    expected = (codes.astype(jnp.float32) * scale) @ w
    y = ops.dot(x, ops.RoundedInput(w))
    np.testing.assert_allclose(y.reshape(6, 5), expected, rtol=1e-5, atol=1e-6)
    assert ops.dot(x.astype(jnp.bfloat16), ops.RoundedInput(w)).dtype == jnp.bfloat16


def test_a_static_scale_clips_what_is_beyond():
    x, w = jnp.array([[0.26, 1.0, -500.0]]), jnp.eye(3)
    y = ops.dot(x, ops.RoundedInput(w, jnp.float32(0.5)))
    np.testing.assert_allclose(y, [[0.5, 1.0, -63.5]])


@pytest.mark.parametrize("format", ["dense_int8", "ell_int8"])
def test_logits_are_those_of_the_packed_int8_types(rounded, format):
    params, grids = rounded
    expected = packed_logits(params, format)
    logits = forward(quant.round_inputs(params, grids), TOKENS, CONFIG)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-5)
    # The rounding is seen, so that its being the same says something.
    floats = forward(params, TOKENS, CONFIG)
    assert float(jnp.abs(logits - floats).max()) > 1e-3 * scale


def test_layers_without_a_grid_take_their_inputs_as_they_are(rounded):
    params, grids = rounded
    first = {key: grid for key, grid in grids.items() if key[1] == 0}
    mixed = quant.round_inputs(params, first)
    logits = forward(mixed, TOKENS, CONFIG)
    assert mixed["layers"]["mlp"]["up"]["kernel"].active.tolist() == [True, False]
    none = {
        path: ops.RoundedInput(leaf, None, jnp.zeros(2, bool))
        if path in linears(params)
        else leaf
        for path, leaf in leaf_paths(params).items()
    }
    floats = forward(params, TOKENS, CONFIG)
    np.testing.assert_allclose(forward(from_paths(none), TOKENS, CONFIG), floats)
    both = forward(quant.round_inputs(params, grids), TOKENS, CONFIG)
    assert len({float(jnp.sum(x)) for x in (logits, floats, both)}) == 3


def test_static_scales_are_per_layer_and_survive_the_scan(rounded):
    params, grids = rounded
    tight = {key: 0.001 if key[1] else 0.05 for key in grids}
    both = Activations(kind="static", scales=tight)
    logits = forward(quant.round_inputs(params, grids, both), TOKENS, CONFIG)
    unrolled = Compute(scan_unroll=2)
    again = forward(quant.round_inputs(params, grids, both), TOKENS, CONFIG, unrolled)
    np.testing.assert_allclose(logits, again, rtol=1e-4, atol=1e-4)
    wide = Activations(kind="static", scales=dict.fromkeys(grids, 0.05))
    other = forward(quant.round_inputs(params, grids, wide), TOKENS, CONFIG)
    assert float(jnp.abs(logits - other).max()) > 1e-2


def test_static_scales_must_be_those_of_the_grids(rounded):
    params, grids = rounded
    scales = dict.fromkeys([*grids][1:], 0.1)
    with pytest.raises(InputError, match=r"must have both a grid and a static scale"):
        quant.round_inputs(params, grids, Activations(kind="static", scales=scales))


def test_one_layer_is_rounded_as_the_stack_is(rounded):
    params, grids = rounded
    layer = jax.tree.map(lambda leaf: leaf[1], params["layers"])
    paths = [path for path, index in grids if index == 1]
    one = quant.round_layer_inputs(layer, 1, paths, Activations())
    kernel = one["mlp"]["down"]["kernel"]
    assert isinstance(kernel, ops.RoundedInput) and kernel.scale is None
    np.testing.assert_array_equal(
        kernel.kernel, params["layers"]["mlp"]["down"]["kernel"][1]
    )
