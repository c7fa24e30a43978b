import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sparse_jax import io
from sparse_jax.io.names import LINEAR_KERNELS
from sparse_jax.sparsity import masks as mask_trees
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def masks(params) -> dict:
    """Random masks of the linear matrices but up."""
    rng = np.random.default_rng(0)
    return from_paths(
        {
            path: jax.device_put(rng.random(leaf.shape) < 0.3)
            if re.fullmatch(LINEAR_KERNELS, path) and "up" not in path
            else None
            for path, leaf in leaf_paths(params).items()
        }
    )


@pytest.fixture
def path(tmp_path, masks):
    io.save_masks(tmp_path / "masks.safetensors", masks)
    return tmp_path / "masks.safetensors"


def test_masks_come_back(path, masks, config):
    found, expected = leaf_paths(io.load_masks(path, config)), leaf_paths(masks)
    assert list(found) == list(expected)
    for name, mask in expected.items():
        if mask is None:
            assert found[name] is None
        else:
            assert found[name].dtype == bool and np.array_equal(found[name], mask)
    assert found["layers/mlp/up/kernel"] is None
    assert found["layers/mlp/down/kernel"] is not None


def test_the_layout_is_as_documented(path, masks):
    """Read with the public library and NumPy alone, as the docstring says."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    shapes = json.loads(metadata["shapes"])
    packed = load_file(path)
    assert metadata["format"] == "sparse_jax.masks" and set(shapes) == set(packed)
    name = "model.layers.2.self_attn.k_proj.weight"
    rows, columns = shapes[name]
    bits = np.unpackbits(packed[name], count=rows * columns, bitorder="little")
    expected = np.asarray(masks["layers"]["attention"]["k"]["kernel"][2]).T
    assert np.array_equal(bits.reshape(rows, columns), expected)
    assert packed[name].dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop(Q0), f"the mask of '{Q0}' is missing"),
        (lambda t, m: t.update({Q0: t[Q0][:-1]}), r"must be 32 uint8 bytes .*\[31\]"),
        (lambda t, m: t.update({Q0: t[Q0].view(np.int8)}), "I8"),
        (lambda t, m: t.update(other=t[Q0]), "mask 'other' belongs to no tensor"),
        (lambda t, m: m.update(shapes="{}"), "of shape None"),
        (lambda t, m: m.update(shapes="["), "of shape None"),
        (
            lambda t, m: m.update(shapes=m["shapes"].replace("[16, 16]", "[8, 32]")),
            r"shape \[8, 32\]",
        ),
        (lambda t, m: m.update(format="pt"), "not a masks file"),
        (lambda t, m: m.update(version="2"), "not a masks file"),
    ],
)
def test_a_bad_file_is_refused(change, message, path, config):
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=message):
        io.load_masks(path, config)


def test_a_truncated_file_is_refused(path, config):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        io.load_masks(path, config)


def test_pruned_weights_must_be_zero_when_saved(tmp_path, params, masks, config):
    with pytest.raises(ValueError, match="a pruned weight is not zero"):
        io.save(tmp_path / "a", params, config, masks=masks)
    pruned = mask_trees.apply(params, masks)
    io.save(tmp_path / "a", pruned, config, masks=masks)
    kernel = io.load(tmp_path / "a")["layers"]["attention"]["o"]["kernel"]
    assert jnp.array_equal(kernel, pruned["layers"]["attention"]["o"]["kernel"])
