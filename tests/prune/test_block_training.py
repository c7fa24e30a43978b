"""Training a pruned and quantised block towards what the dense block computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import models
from sparse_jax.models import LlamaConfig
from sparse_jax.prune import Activations, ParamsBlocks, block_training
from sparse_jax.prune.block_training import BlockTrainingConfig, train_block
from sparse_jax.prune.blockwise import run_block
from sparse_jax.prune.dense_stream import DenseStream
from sparse_jax.quant import GridConfig, fit, from_codes, round_to_grid, to_codes
from sparse_jax.sparsity import NM, Group
from sparse_jax.sparsity.masks import project_kernel
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

MODEL = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2
)
TOKENS = np.random.default_rng(0).integers(0, 64, (11, 12), np.int32)
TUNE = BlockTrainingConfig(epochs=3, learning_rate=3e-3)
GROUPS = Group(16, 0.5)
ASYMMETRIC = GridConfig(bits=4, group=16, symmetric=False)


@pytest.fixture(scope="module")
def params():
    """With larger weights than fresh ones have, for blocks that do something."""
    params = models.init(jax.random.key(0), MODEL)
    return jax.tree.map(lambda w: w if w.ndim == 2 else 5 * w, params)


@pytest.fixture(scope="module")
def blocks(params):
    return ParamsBlocks(params, MODEL)


def quantised(layer, pattern, grid):
    """A layer rounded to nearest, its masks and its grids."""
    leaves, masks, grids = leaf_paths({"layers": layer}), {}, {}
    for path, kernel in leaves.items():
        if path.endswith("kernel"):
            masks[path] = project_kernel(pattern, kernel**2)
            grids[path] = fit(kernel, grid, masks[path], axis=-2)
            rounded = round_to_grid(kernel, grids[path], axis=-2)
            leaves[path] = jnp.where(masks[path], rounded, 0)
    return leaves, masks, grids


def activations(blocks, batch_size=4):
    """What enters the first block, and what the dense one makes of it."""
    inputs = DenseStream(blocks, TOKENS, batch_size=batch_size).targets(-1)
    return inputs, DenseStream(blocks, TOKENS, batch_size=batch_size).targets(0)


def run(blocks, pattern=GROUPS, grid=ASYMMETRIC, config=TUNE):
    leaves, masks, grids = quantised(blocks.layer(0), pattern, grid)
    streams = activations(blocks)
    layer = from_paths(leaves)["layers"]
    return leaves, masks, train_block(layer, masks, grids, *streams, MODEL, config)


def error(leaves, inputs, targets):
    """|f(x) - t|^2 / |t|^2 over all sequences, in float64."""
    layer = from_paths(leaves)["layers"]
    pairs = [
        (np.asarray(run_block(layer, x, MODEL), np.float64), np.asarray(t, np.float64))
        for x, t in zip(inputs, targets, strict=True)
    ]
    total = sum(np.sum((y - t) ** 2) for y, t in pairs)
    return total / sum(np.sum(t**2) for _, t in pairs)


@pytest.mark.parametrize(
    ("pattern", "grid"),
    [
        (GROUPS, ASYMMETRIC),
        (GROUPS, GridConfig(bits=4, group=16)),
        (NM(2, 4), GridConfig(bits=3, group=0)),
    ],
    ids=str,
)
def test_it_improves_and_says_what_it_is(blocks, pattern, grid):
    leaves, masks, found = run(blocks, pattern, grid)
    streams = activations(blocks)
    assert found.before == pytest.approx(error(leaves, *streams), rel=1e-4)
    trained = leaf_paths({"layers": found.params})
    assert found.after == pytest.approx(error(trained, *streams), rel=1e-4)
    assert found.after < 0.9 * found.before
    for path, mask in masks.items():
        kernel, own = trained[path], found.grids[path]
        assert not np.asarray(kernel)[~np.asarray(mask)].any()
        assert own.config == grid
        again = from_codes(to_codes(kernel, own, axis=-2), own, axis=-2)
        np.testing.assert_array_equal(jnp.where(mask, again, 0), kernel)
        np.testing.assert_array_equal(
            own.scales, own.scales.astype(grid.scale_dtype).astype(jnp.float32)
        )
        assert not np.array_equal(kernel, leaves[path])


def test_it_is_deterministic(blocks):
    first, second = (run(blocks)[2] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert first.after == second.after


def test_it_is_never_worse(blocks):
    """A learning rate that destroys the block gives it back as it came."""
    config = dataclasses.replace(TUNE, epochs=1, learning_rate=100.0)
    leaves, _, found = run(blocks, config=config)
    assert found.after == found.before
    for path, leaf in leaf_paths({"layers": found.params}).items():
        np.testing.assert_array_equal(leaf, leaves[path], err_msg=path)


def test_matrices_without_a_grid_stay_floats(blocks):
    leaves, masks, grids = quantised(blocks.layer(0), GROUPS, ASYMMETRIC)
    left_out = "layers/mlp/down/kernel"
    leaves[left_out] = leaf_paths({"layers": blocks.layer(0)})[left_out]
    del masks[left_out], grids[left_out]
    layer = from_paths(leaves)["layers"]
    found = train_block(layer, masks, grids, *activations(blocks), MODEL, TUNE)
    assert found.grids.keys() == grids.keys()
    assert found.after < found.before
    assert np.asarray(found.params["mlp"]["down"]["kernel"]).all()


def test_the_targets_are_the_dense_model_s(params, blocks):
    """Block by block, whatever is done to the new blocks; samples stay countable."""
    stream = DenseStream(blocks, TOKENS, batch_size=4)
    first = [np.asarray(x) for x in stream.targets(0)]
    last = [np.asarray(x) for x in stream.targets(1)]
    whole = np.asarray(
        models.hidden_and_features(params, jnp.asarray(TOKENS), MODEL)[1]
    )
    np.testing.assert_allclose(np.concatenate(first), whole[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(last), whole[1], rtol=1e-4, atol=1e-5)
    assert stream.targets(1).samples == len(TOKENS)


def test_one_compilation_for_all_blocks(blocks):
    run(blocks)
    compiled = block_training._step._cache_size(), block_training._error._cache_size()
    second = ParamsBlocks(jax.tree.map(lambda w: 0.9 * w, blocks.params), MODEL)
    run(second)
    after = block_training._step._cache_size(), block_training._error._cache_size()
    assert compiled == after


def test_bad_input_is_one_sentence(blocks):
    layer = blocks.layer(0)
    inputs, targets = activations(blocks)
    empty = Activations([])
    for pair in ((empty, empty), (inputs, empty)):
        with pytest.raises(InputError, match="needs calibration text, and the same"):
            train_block(layer, {}, {}, *pair, MODEL, TUNE)
    targets.update(lambda x: x.at[0, 0, 0].set(jnp.nan))
    with pytest.raises(InputError, match="the dense block's outputs are not finite"):
        train_block(layer, {}, {}, inputs, targets, MODEL, TUNE)
    for fields in ({"epochs": 0}, {"learning_rate": -1.0}, {"zero_rate": float("nan")}):
        with pytest.raises(InputError, match=f"tune.{next(iter(fields))} must be"):
            BlockTrainingConfig(**fields)
