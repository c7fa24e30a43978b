"""The older layout of bitmaps and values: read exactly, and refused where it lies."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparse_jax import io
from sparse_jax.models import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError
from tests.io import quantized_models as quantized

CONFIG = LlamaConfig(
    vocab_size=24, d_model=20, d_ff=44, n_layers=2, n_heads=2, n_kv_heads=1
)
UP = "model.layers.1.mlp.up_proj"
SPARSE = {"format": "sparse-bitmask", "sparsity_structure": "unstructured"}


def to_bitmask(tensors, columns):
    """Every linear of the blocks in the older layout."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith("proj.weight"):
            found[name] = tensor
            continue
        module, kept = name.removesuffix(".weight"), tensor != 0
        counts = kept.sum(axis=1)
        vectors = {
            "shape": np.array(tensor.shape, np.int64),
            "compressed": tensor[kept],
            "row_offsets": np.cumsum(counts) - counts,
        }
        for part, vector in vectors.items():
            found[f"{module}.{part}"] = vector[:, None] if columns else vector
        found[f"{module}.bitmask"] = np.packbits(kept, axis=1, bitorder="little")
    return found


def rewrite(directory, change, **settings):
    tensors = change(load_file(directory / "model.safetensors"))
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text()) | settings
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def sparse(make_params) -> dict:
    rng = np.random.default_rng(0)
    leaves = leaf_paths(make_params(CONFIG))
    for path, leaf in leaves.items():
        if path.endswith("kernel") and path.startswith("layers"):
            leaves[path] = np.where(rng.random(leaf.shape) < 0.4, leaf, np.float32(0))
    return from_paths(leaves)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config", ""])
def test_floats_come_back(sparse, tmp_path, columns, key):
    io.save(tmp_path / "a", sparse, CONFIG)
    settings = {"quant_method": "compressed-tensors", "sparsity_config": SPARSE}
    settings = {key: settings} if key else {"sparsity_config": SPARSE}
    rewrite(tmp_path / "a", lambda tensors: to_bitmask(tensors, columns), **settings)
    model = io.resolve(tmp_path / "a")
    for path, leaf in leaf_paths(sparse).items():
        assert np.array_equal(leaf_paths(model.params)[path], leaf), path
    reader = io.open_blocks(tmp_path / "a")
    assert reader.masked and not reader.quantized and reader.dtype == "float32"
    entry = reader.entries[f"{UP}.weight"]
    expected = np.asarray(sparse["layers"]["mlp"]["up"]["kernel"])[1].T
    assert np.array_equal(entry.rows(3, 7), expected[3:7])
    assert np.array_equal(entry.take(np.array([0, 43])), expected[[0, 43]])


def test_codes_come_back(tmp_path):
    def kept(shape):
        return np.random.default_rng(1).random(shape) < 0.5

    written = quantized.write(tmp_path / "a", CONFIG, quantized.scheme(8), kept=kept)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    settings = config["quantization_config"] | {"sparsity_config": SPARSE}

    def change(tensors):
        floats = {
            name: tensor.astype(np.float32) if tensor.dtype != np.int8 else tensor
            for name, tensor in tensors.items()
        }
        return to_bitmask(floats, True)

    rewrite(tmp_path / "a", change, quantization_config=settings)
    model = io.resolve(tmp_path / "a")
    found = model.params["layers"]["mlp"]["up"]["kernel"][1].T
    assert np.array_equal(found, written.weights(f"{UP}.weight"))
    assert model.grids["layers/mlp/up/kernel", 1].config.bits == 8
    assert model.masks is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bitmask": lambda a: a[:, :2]}, r"up_proj\.bitmask' must have a shape among"),
        ({"bitmask": lambda a: a.astype("i1")}, "dtype among .'U8'., found .* and I8"),
        ({"bitmask": lambda a: a | 1}, "does not fit .*bitmask' and the .* values in"),
        ({"compressed": lambda a: a[:-1]}, "does not fit .* values in rows"),
        ({"compressed": lambda a: a.astype("f8")}, r"compressed' must .* and F64"),
        ({"row_offsets": lambda a: a[:-1]}, r"row_offsets' must have a shape among"),
        ({"row_offsets": lambda a: a + 1}, "does not fit"),
        ({"row_offsets": lambda a: a - 9**9}, "does not fit"),
        ({"row_offsets": lambda a: a[::-1].copy()}, "does not fit"),
        (
            {"shape": lambda a: a[::-1].copy()},
            r"must hold \[44, 20\], found \[20",
        ),
        ({"shape": lambda a: a[:1]}, r"shape' must have a shape among"),
        ({"shape": None}, r"tensor '.*up_proj\.shape' is missing"),
    ],
)
def test_what_does_not_fit_is_refused(sparse, tmp_path, change, sentence):
    io.save(tmp_path / "a", sparse, CONFIG)

    def damage(tensors):
        tensors = to_bitmask(tensors, False)
        for part, function in change.items():
            tensor = tensors.pop(f"{UP}.{part}")
            if function is not None:
                tensors[f"{UP}.{part}"] = function(tensor)
        return tensors

    rewrite(tmp_path / "a", damage, sparsity_config=SPARSE)
    with pytest.raises(InputError, match=sentence) as error:
        io.resolve(tmp_path / "a")
    assert "\n" not in str(error.value)
