"""Our reader and writer against the public library, and hostile files."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from sparse_jax.io import safetensors_file
from sparse_jax.io.safetensors_file import DTYPES, Tensor
from sparse_jax.types import InputError


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape=(2,), begin=0, end=8, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {
        name: (100 * rng.random((3, 5))).astype(dtype)
        for name, dtype in DTYPES.items()
        if name != "BF16"  # the library's NumPy side does not know it
    }
    return made | {
        "vector": np.ones(7, np.float32),
        "scalar": np.array(3.0, np.float32),
    }


def test_files_of_the_public_library_are_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays(), path, {"format": "pt"})
    entries, metadata = safetensors_file.read_header(path)
    assert metadata == {"format": "pt"} and set(entries) == set(arrays())
    for name, expected in arrays().items():
        found = entries[name].read()
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert np.array_equal(found, expected)


def test_the_public_library_reads_our_files(tmp_path):
    path = tmp_path / "a.safetensors"
    codes = {dtype: name for name, dtype in DTYPES.items()}
    tensors = [
        Tensor(name, codes[array.dtype], array.shape, lambda array=array: [array])
        for name, array in arrays().items()
    ]
    safetensors_file.write(path, tensors, {"a": "b"})
    loaded = safetensors.numpy.load_file(path)
    for name, expected in arrays().items():
        assert loaded[name].dtype == expected.dtype
        assert np.array_equal(loaded[name], expected)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"a": "b"}


def test_bfloat16_keeps_its_bits(tmp_path):
    path = tmp_path / "a.safetensors"
    array = np.arange(256, dtype=np.uint16).view(DTYPES["BF16"]).reshape(16, 16)
    safetensors_file.write(path, [Tensor("x", "BF16", (16, 16), lambda: [array])], {})
    found = safetensors_file.read_header(path)[0]["x"].read()
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(found.view(np.uint16), array.view(np.uint16))


def test_panels_cover_a_large_tensor_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "_PANEL", 100)
    path = tmp_path / "a.safetensors"
    array = np.arange(70, dtype=np.float32).reshape(10, 7)
    safetensors.numpy.save_file({"x": array}, path)
    panels = list(safetensors_file.read_header(path)[0]["x"].panels())
    assert [start for start, _ in panels] == [0, 3, 6, 9]
    assert np.array_equal(np.concatenate([rows for _, rows in panels]), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 50) + b"{}",
        raw(b"not json"),
        raw(b"\xff\xfe{}"),
        raw([1, 2]),
        raw(b'{"a":' * 50_000),
        raw(b'{"a":1,"a":2}'),
        raw({"x": 3}),
        raw({"__metadata__": 3}),
        raw({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        raw({"x": tensor(dtype="F4")}, bytes(8)),
        raw({"x": tensor(dtype=["F32"])}, bytes(8)),
        raw({"x": tensor(shape=[-2])}, bytes(8)),
        raw({"x": tensor(shape=[2.0])}, bytes(8)),
        raw({"x": tensor(shape=[True, 2])}, bytes(8)),
        raw({"x": tensor(shape="ab")}, bytes(8)),
        raw({"x": tensor(shape=[3])}, bytes(8)),
        raw({"x": tensor(shape=[2**62, 4])}, bytes(8)),
        raw({"x": tensor(begin=4, end=12)}, bytes(12)),
        raw({"x": tensor(begin=8, end=0)}, bytes(8)),
        raw({"x": tensor()}, bytes(7)),
        raw({"x": tensor()}, bytes(9)),
        raw({"x": tensor(), "y": tensor(begin=4, end=12)}, bytes(12)),
        raw({"x": tensor(), "y": tensor()}, bytes(8)),
    ],
)
def test_damaged_files_are_refused(content, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        safetensors_file.read_header(path)


@given(position=st.integers(0, 120), value=st.integers(0, 255), cut=st.integers(0, 160))
def test_any_damage_is_noticed_or_harmless(position, value, cut):
    """Whatever happens to a file, the only error is InputError."""
    import pathlib
    import tempfile

    content = bytearray(raw({"x": tensor(), "__metadata__": {"a": "b"}}, bytes(8)))
    content[position % len(content)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x"
        path.write_bytes(content[: cut if cut < len(content) else None])
        try:
            entries, _ = safetensors_file.read_header(path)
            for entry in entries.values():
                entry.read()
        except InputError:
            pass


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw({"x": tensor()}, bytes(8)))
    entry = safetensors_file.read_header(path)[0]["x"]
    path.write_bytes(raw({"x": tensor()}, bytes(7)))
    with pytest.raises(InputError, match="'x' is truncated"):
        entry.read()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.safetensors: cannot be read"):
        safetensors_file.read_header(tmp_path / "gone.safetensors")
