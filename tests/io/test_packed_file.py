"""Whole packed models: what is read is what was written, or one sentence."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.io import names, packed_layout
from sparse_jax.io.config_json import config_to_json
from sparse_jax.kernels import FORMATS, Packed, pack
from sparse_jax.models import LlamaConfig, abstract_params
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.io.packed_files import make, mend, mutate

CONFIG = LlamaConfig(
    vocab_size=20, d_model=16, d_ff=32, n_layers=2, n_heads=2, n_kv_heads=1
)
UP = "model.layers.1.mlp.up_proj.weight"
TABLE = "model.embed_tokens.weight"


def pruned(w_OI: np.ndarray, kind: str) -> np.ndarray:
    """Half of the weights, in a pattern that the storage type can hold."""
    row, column = np.indices(w_OI.shape)
    return w_OI * ((row + (column // 16 if "group" in kind else column)) % 2)


def weights(config=CONFIG) -> dict[str, np.ndarray]:
    """A random model by Hugging Face names."""
    rng = np.random.default_rng(0)
    shapes = {
        path: leaf.shape for path, leaf in leaf_paths(abstract_params(config)).items()
    }
    found = {}
    for slot in names.slots(shapes, range(config.n_layers)):
        shape = names.slot_shape(slot, shapes[slot.path])
        found[slot.name] = rng.standard_normal(shape, np.float32)
    return found


def model(kind="dense_float32", config=CONFIG, **changes) -> dict:
    """The tensors of a packed model; every matrix but the head as `kind`."""
    tensors = {}
    for name, values in weights(config).items():
        matrix = "_proj" in name and values.ndim == 2
        if matrix:
            tensors[name] = pack(kind, pruned(values, kind))
        elif name == "lm_head.weight" or (name == TABLE and config.tie_embeddings):
            tensors[name] = pack("dense_float32", values)
        else:
            tensors[name] = values
    return {k: v for k, v in (tensors | changes).items() if v is not None}


def files(config=CONFIG) -> dict[str, bytes]:
    return {"config.json": json.dumps(config_to_json(config)).encode()}


def write(path: pathlib.Path, tensors: dict, config=CONFIG) -> pathlib.Path:
    with io.write_packed(path, config, "float32") as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return path


def leaves_of(packed: io.PackedModel, path: str) -> dict[str, np.ndarray]:
    """The tensors of a leaf by Hugging Face name, unpacked."""
    leaf = leaf_paths(packed.params)[path]
    found = {}
    for slot in names.slots([path], range(packed.config.n_layers)):
        part = leaf if slot.layer is None else leaf[slot.layer]
        found[slot.name] = (
            part.unpack() if isinstance(part, Packed) else np.asarray(part)
        )
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_comes_back_as_it_was_packed(kind, tmp_path):
    tensors = model(kind)
    packed = io.read_packed(write(tmp_path / "model.packed", tensors))
    assert packed.config == CONFIG and packed.tokenizer is None
    for path in leaf_paths(packed.params):
        for name, found in leaves_of(packed, path).items():
            expected = tensors[name]
            if isinstance(expected, Packed):
                expected = expected.unpack()
            assert np.array_equal(found, expected), name
    leaf = packed.params["layers"]["mlp"]["up"]["kernel"][1]
    assert leaf.format == kind and leaf.nbytes == tensors[UP].nbytes
    assert jax.tree.structure(leaf) == jax.tree.structure(tensors[UP])


def test_arrays_stay_in_the_file(tmp_path, monkeypatch):
    """JAX takes over the mapped memory: no weight is copied."""
    path, maps = write(tmp_path / "model.packed", model()), []
    real = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *a: maps.append(real(*a)) or maps[-1])
    packed = io.read_packed(path)
    (mapped,) = maps
    first = mapped.ctypes.data
    leaf = packed.params["layers"]["mlp"]["up"]["kernel"][0]
    table = packed.params["embed"]["embedding"]
    for array in [*leaf.arrays.values(), table]:
        assert 0 <= array.unsafe_buffer_pointer() - first < mapped.size
        assert array.unsafe_buffer_pointer() % 64 == 0
    del mapped, maps[:]
    expected = pruned(weights()["model.layers.0.mlp.up_proj.weight"], "dense_float32")
    assert np.array_equal(leaf.unpack(), expected)


def test_a_tied_table_lies_in_the_file_once(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    path = write(tmp_path / "model.packed", model(config=config), config)
    params = io.read_packed(path).params
    assert params["lm_head"]["kernel"] is params["embed"]["embedding"]
    assert np.array_equal(params["lm_head"]["kernel"].unpack(), weights(config)[TABLE])
    # A rounded head needs a table beside it.
    tensors = model(config=config)
    tensors[TABLE] = weights(config)[TABLE].astype(jnp.bfloat16)
    tensors["lm_head.weight"] = pack("dense_float32", weights(config)[TABLE])
    params = io.read_packed(write(tmp_path / "b.packed", tensors, config)).params
    assert params["embed"]["embedding"].dtype == jnp.bfloat16
    assert params["lm_head"]["kernel"].format == "dense_float32"


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "model.packed"
    with (
        pytest.raises(RuntimeError),
        io.write_packed(path, CONFIG, "float32") as writer,
    ):
        writer.add("x", np.ones(3, np.float32))
        assert not path.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    write(path, {})
    with pytest.raises(InputError, match=r"model\.packed: exists already; choose anot"):
        write(path, {})
    with pytest.raises(InputError, match=r"cannot be written .*; free some space"):
        write(path / "below" / "a file", {})


def test_a_full_disk_is_one_sentence(tmp_path):
    with (
        pytest.raises(InputError, match=r"model\.packed: cannot be written .No space"),
        io.write_packed(tmp_path / "model.packed", CONFIG, "float32") as writer,
    ):
        writer._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
        with writer._file:
            writer.add("x", np.ones(30_000, np.float32))
    assert list(tmp_path.iterdir()) == []


REFUSED = [
    ({UP: None}, rf"tensor '{UP}' of shape \[32, 16\] is missing"),
    ({"y": np.ones(1, np.float32)}, "tensor 'y' is not part of the model"),
    (
        {UP: np.ones((32, 16), np.float32)},
        rf"'{UP}' must have shape \[32, 16\] and a storage type, found .* 'array'",
    ),
    (
        {UP: pack("dense_float32", np.ones((16, 32), np.float32))},
        rf"'{UP}' must have shape \[32, 16\] and a storage type, found \[16, 32\]",
    ),
    (
        {"model.norm.weight": np.ones(16, np.int8)},
        r"'model\.norm\.weight' must hold one of \['float32', .* found int8",
    ),
    (
        {"model.norm.weight": pack("dense_float32", np.ones((1, 16), np.float32))},
        r"'model\.norm\.weight' must have shape \[16\] and format 'array'",
    ),
    (
        {TABLE: pack("dense_float32", np.ones((20, 16), np.float32))},
        "only a tied table may be packed",
    ),
    (
        {UP: Packed("ternary", (32, 16), {"x": np.ones(4, np.uint8)})},
        rf"tensor '{UP}': unknown format 'ternary'; expected one of dense_float32, ",
    ),
    (
        {UP: Packed("dense_float32", (32, 16), {"x": np.ones(4, np.uint8)})},
        rf"'{UP}', dense_float32: expected the arrays \['values'\], found \['x'\]",
    ),
    (
        {UP: Packed("dense_float32", (32, 16), {"values": np.ones(4, np.float32)})},
        rf"'{UP}', dense_float32, array values: expected float32 of shape "
        r"\[2, 16, 16\], found float32 of shape \[4\]",
    ),
    (
        {UP: Packed("dense_float32", (32, 16), {"values": np.ones((2, 16, 16), "u4")})},
        r"expected float32 of shape .*, found uint32 of shape \[2, 16, 16\]",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_tensors_that_do_not_fit_are_refused(changes, sentence, tmp_path):
    path = write(tmp_path / "model.packed", model(**changes))
    with pytest.raises(InputError, match=rf"model\.packed: .*{sentence}"):
        io.read_packed(path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, r"it holds no config\.json"),
        (b"{", r"its config\.json is not valid JSON"),
        (b"[" * 100_000, r"its config\.json is not valid JSON"),
        (b"[]", r"its config\.json is not a JSON object"),
        (b"{}", r"config\.json: model_type None is not supported"),
        (
            {"num_hidden_layers": 10**9},
            r"describes 1000000000 layers, found 21 tensors",
        ),
        ({"hidden_size": 2**40, "head_dim": 8}, "d_model must be below 2"),
        (
            {"head_dim": 2**30 + 2, "num_attention_heads": 8},
            "query width must be below",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(config, sentence, tmp_path):
    if isinstance(config, dict):
        config = json.dumps(config_to_json(CONFIG) | config).encode()
    content = make(model(), {} if config is None else {"config.json": config})
    (tmp_path / "model.packed").write_bytes(content)
    with pytest.raises(InputError, match=rf"model\.packed: .*{sentence}"):
        io.read_packed(tmp_path / "model.packed")


def test_a_tokenizer_is_carried_along(tmp_path, shared_data):
    source = io.resolve(shared_data / "stories260K-hf")
    carried = source.tokenizer.files
    config = dataclasses.replace(CONFIG, vocab_size=512)
    with io.write_packed(tmp_path / "a.packed", config, "float32", carried) as writer:
        for name, tensor in model(config=config).items():
            writer.add(name, tensor)
    packed = io.read_packed(tmp_path / "a.packed")
    assert packed.tokenizer.files == carried
    assert packed.tokenizer.fingerprint == source.tokenizer.fingerprint
    small = make(model(), files() | carried)
    (tmp_path / "b.packed").write_bytes(small)
    with pytest.raises(InputError, match="its tokenizer: the tokenizer has 512 tokens"):
        io.read_packed(tmp_path / "b.packed")
    broken = make(model(), files() | {"tokenizer.json": b"{}"})
    (tmp_path / "c.packed").write_bytes(broken)
    with pytest.raises(InputError, match=r"c\.packed: tokenizer\.json is not a token"):
        io.read_packed(tmp_path / "c.packed")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.packed"
    for content in (b"", b"{}", b"\x00" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.packed: not a packed file"):
            io.read_packed(path)
    with pytest.raises(InputError, match=r"gone: cannot be read: No such file"):
        io.read_packed(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        io.read_packed(tmp_path)


def test_two_thousand_damaged_files(tmp_path):
    """Whatever is wrong with a file, it is said in one sentence, or it is harmless."""
    kinds = list(FORMATS)
    tensors = {
        f"{kind}.{n}": pack(kind, pruned(np.ones((32, 64), np.float32), kind))
        for kind in kinds
        for n in (0, 1)
    }
    config = dataclasses.replace(CONFIG, n_layers=1)
    seeds = [make(model(kind, config), files(config)) for kind in kinds]
    seeds.append(make(tensors, files(config)))
    rng, refused, read = np.random.default_rng(0), set(), 0
    for number in range(2000):
        content = mutate(
            rng, seeds[number % len(seeds)], seeds[rng.integers(len(seeds))]
        )
        path = tmp_path / f"{number}.packed"
        path.write_bytes(mend(content) if number % 2 else content)
        try:
            packed = io.read_packed(path)
        except InputError as error:
            message = str(error)
            assert message.startswith(str(path)) and "\n" not in message
            assert len(message) < 500
            refused.add(message.removeprefix(str(path))[:30])
        else:
            read += 1
            with np.errstate(all="ignore"):  # a damaged scale may be infinite
                for leaf in packed.params["layers"]["mlp"]["up"]["kernel"]:
                    leaf.unpack()
        path.unlink()
    assert read > 100 and len(refused) > 30


def test_the_layout_is_documented(tmp_path):
    text = (pathlib.Path(__file__).parents[2] / "docs/packed_format.md").read_text()
    space: dict = {}
    exec(text.split("```python")[1].split("```")[0], space)
    tensors = model(TABLE=np.ones(3, jnp.bfloat16))
    found = space["read_packed"](write(tmp_path / "model.packed", tensors))
    assert found.keys() - {"config.json"} == tensors.keys()
    kind, shape, arrays = found[UP]
    assert (kind, shape) == ("dense_float32", (32, 16))
    assert np.array_equal(arrays["values"], tensors[UP].arrays["values"])
    assert found["TABLE"][2]["values"].tolist() == [0x3F80] * 3
    assert packed_layout.MAGIC.decode() in text
    for code, name in enumerate(packed_layout.DTYPES):
        assert f"{code} {name}" in text
