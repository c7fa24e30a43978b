import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.models import INPUTS, LlamaConfig, block, init
from sparse_jax.prune import Awq, QuantizeConfig, SmoothQuant, hessians
from sparse_jax.prune.ranges import input_ranges, static_scale
from sparse_jax.prune.smooth_block import smooth
from sparse_jax.quant import GridConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

# Grouped-query attention and all biases.
CONFIG = LlamaConfig(
    vocab_size=64,
    d_model=32,
    d_ff=48,
    n_layers=1,
    n_heads=4,
    n_kv_heads=2,
    max_seq_len=32,
    attention_bias=True,
    mlp_bias=True,
    init_std=0.2,
)
LINEARS = [f"layers/{name}/kernel" for names in INPUTS.values() for name in names]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def layer():
    params = jax.tree.map(
        lambda leaf: leaf[0], init(jax.random.key(0), CONFIG)["layers"]
    )
    leaves = leaf_paths({"layers": params})
    for path, leaf in leaves.items():
        if path.endswith("bias"):
            leaves[path] = jnp.asarray(RNG.normal(size=leaf.shape) * 0.1, jnp.float32)
        if path.endswith("scale"):
            leaves[path] = jnp.asarray(np.exp(RNG.normal(size=32)), jnp.float32)
    return leaves


@pytest.fixture(scope="module")
def x_BTD():
    return jnp.asarray(RNG.normal(size=(4, 10, 32)), jnp.float32)


def run_smooth(layer, x_BTD, kind, masks=None, rounded=LINEARS):
    params = from_paths(layer)["layers"]
    config = QuantizeConfig(smooth=kind, grid=GridConfig(bits=3, group=0))
    arguments = params, [x_BTD], CONFIG
    found = hessians(*arguments), input_ranges(*arguments)
    return smooth(layer, masks or {}, *found, rounded, config)


@pytest.mark.parametrize("kind", [SmoothQuant(alpha=0.8), Awq(points=5)])
def test_the_block_computes_the_same(layer, x_BTD, kind):
    leaves, found_hessians, ranges = run_smooth(layer, x_BTD, kind)
    before, _ = block(from_paths(layer)["layers"], x_BTD, CONFIG)
    smoothed = from_paths(leaves)["layers"]
    after, _ = block(smoothed, x_BTD, CONFIG)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    for path in ("attention/k", "mlp/gate", "mlp/down"):
        path = f"layers/{path}/kernel"
        assert not np.allclose(leaves[path], layer[path], rtol=0.1)
    # H and the ranges are those that the smoothed block has.
    measured = hessians(smoothed, [x_BTD], CONFIG)
    again = input_ranges(smoothed, [x_BTD], CONFIG)
    for tap in INPUTS:
        scale = float(jnp.abs(measured[tap]).max())
        np.testing.assert_allclose(
            found_hessians[tap] / scale, measured[tap] / scale, atol=1e-5
        )
        np.testing.assert_allclose(ranges[tap].largest, again[tap].largest, rtol=1e-4)
        np.testing.assert_allclose(ranges[tap].mean, again[tap].mean, rtol=1e-4)


def test_the_published_scales_share_the_ranges(layer, x_BTD):
    _, _, ranges = run_smooth(layer, x_BTD, SmoothQuant(alpha=1.0))
    for tap in ("attention_in", "mlp_in", "mlp_out_in"):
        np.testing.assert_allclose(ranges[tap].largest, 1.0, rtol=1e-4)
    leaves, _, _ = run_smooth(layer, x_BTD, SmoothQuant(alpha=0.0))
    for tap in ("attention_in", "mlp_out_in"):  # `up` is divided by its outputs', too
        kernels = [leaves[f"layers/{name}/kernel"] for name in INPUTS[tap]]
        largest = np.max([np.abs(k).max(1) for k in kernels], 0)
        np.testing.assert_allclose(largest, largest[0], rtol=1e-4)


def test_zeros_stay_and_what_is_not_rounded_is_not_smoothed(layer, x_BTD):
    mask = jnp.asarray(RNG.random((48, 32)) < 0.5)
    down = "layers/mlp/down/kernel"
    sparse = layer | {down: jnp.where(mask, layer[down], 0)}
    masks = {down: mask}
    leaves, _, _ = run_smooth(sparse, x_BTD, Awq(points=3), masks, [down])
    assert not np.asarray(leaves[down])[~np.asarray(mask)].any()
    for path in ("layers/attention_norm/scale", "layers/mlp/gate/kernel"):
        assert leaves[path] is layer[path]


def test_ranges_are_over_all_batches_and_what_counts(layer, x_BTD):
    params = from_paths(layer)["layers"]
    whole = input_ranges(params, [x_BTD], CONFIG)
    filled = jnp.concatenate([x_BTD[3:], 100 * jnp.ones((2, 10, 32))])
    cut = input_ranges(params, [x_BTD[:3], filled], CONFIG, samples=4)
    for tap in INPUTS:
        np.testing.assert_allclose(cut[tap].largest, whole[tap].largest, rtol=1e-5)
        np.testing.assert_allclose(cut[tap].mean, whole[tap].mean, rtol=1e-5)
    assert static_scale(whole["mlp_in"]) == pytest.approx(
        float(whole["mlp_in"].largest.max()) / 127
    )


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_ranges_that_are_not_finite_name_the_matrices(layer, x_BTD, value):
    scale = layer["layers/mlp_norm/scale"].at[3].set(value)
    params = from_paths(layer | {"layers/mlp_norm/scale": scale})["layers"]
    sentence = "the inputs of layers/mlp/gate/kernel and layers/mlp/up/kernel are NaN"
    with pytest.raises(InputError, match=sentence):
        input_ranges(params, [x_BTD], CONFIG)
