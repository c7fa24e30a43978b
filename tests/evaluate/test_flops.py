"""Training flops: against hand counts and against the parameter tree."""

import jax
import numpy as np
import pytest

from sparse_jax import models, tree
from sparse_jax.evaluate import matmul_weights, training_flops_per_token
from sparse_jax.models import LlamaConfig, sizes
from sparse_jax.types import InputError

GQA = LlamaConfig(
    vocab_size=50, d_model=32, d_ff=48, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16
)


def kernels(config):
    leaves = tree.leaf_paths(models.abstract_params(config))
    return {path: leaf for path, leaf in leaves.items() if path.endswith("kernel")}


@pytest.mark.parametrize("config", [GQA, sizes.get("llama3_8b")])
def test_weights_are_the_kernels_of_the_model(config):
    assert not config.tie_embeddings  # the head is then one of the kernels
    expected = sum(leaf.size for leaf in kernels(config).values())
    assert matmul_weights(config) == expected


def test_tied_head_still_costs_its_matmul():
    config = sizes.get("tiny")
    layers = 2 * (4 * 128 * 128 + 3 * 128 * 352)
    assert matmul_weights(config) == layers + 128 * 2048


def test_flops_of_the_formula():
    weights = matmul_weights(GQA)
    assert training_flops_per_token(GQA, 100) == 6 * weights + 6 * 3 * 64 * 100


def test_only_kept_weights_count():
    path = "layers/mlp/up/kernel"
    shape = kernels(GQA)[path].shape
    mask = np.random.default_rng(0).random(shape) < 0.3
    masks = tree.from_paths({path: mask, "layers/mlp/down/kernel": None})
    pruned = mask.size - int(mask.sum())
    assert matmul_weights(GQA) - matmul_weights(GQA, masks) == pruned
    dense = training_flops_per_token(GQA, 8)
    assert dense - training_flops_per_token(GQA, 8, masks) == 6 * pruned


def test_all_true_masks_are_dense():
    masks = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, bool),
        {"layers": models.abstract_params(GQA)["layers"]},
    )
    only_kernels = {
        path: mask
        for path, mask in tree.leaf_paths(masks).items()
        if path.endswith("kernel")
    }
    assert matmul_weights(GQA, tree.from_paths(only_kernels)) == matmul_weights(GQA)


def test_masks_of_another_model():
    masks = tree.from_paths({"layers/mlp/up/kernel": np.ones((3, 32, 40), bool)})
    with pytest.raises(InputError, match="layers/mlp/up/kernel has shape"):
        matmul_weights(GQA, masks)
