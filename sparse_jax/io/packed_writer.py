"""Packed files written tensor by tensor; each appears whole or not at all."""

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path

import jax
import numpy as np

from sparse_jax.files import replace_file
from sparse_jax.io import packed_layout
from sparse_jax.io.config_json import config_to_json
from sparse_jax.io.packed_layout import ARRAY, FILE, ArrayRecord, Record
from sparse_jax.kernels import Packed
from sparse_jax.models.config import LlamaConfig
from sparse_jax.types import InputError

CONFIG = "config.json"


@contextlib.contextmanager
def write_packed(
    path: str | Path,
    config: LlamaConfig,
    dtype: str,
    files: Mapping[str, bytes] | None = None,
) -> Iterator["PackedWriter"]:
    """Gives a writer, whose file takes its place when the context is left.

    Nothing is held in memory but the tensor that is being added.

    Args:
      path: the new file.
      config: architecture.
      dtype: of the checkpoint, for the `config.json` inside.
      files: name -> content of what is carried along, such as the tokenizer's.

    Raises:
      InputError: there is a file already, or the disk is full or read-only.

    Example:
      >>> import tempfile
      >>> config = LlamaConfig(
      ...     vocab_size=4, d_model=2, d_ff=2, n_layers=1, n_heads=1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder, "model.packed")
      ...     with write_packed(path, config, "float32") as writer:
      ...         writer.add("model.norm.weight", np.ones(2, np.float32))
      ...     path.stat().st_size > 4096
      True
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists already; choose another place")
    text = json.dumps(config_to_json(config, dtype), indent=2) + "\n"
    with replace_file(path) as partial, partial.open("wb") as file:
        writer = PackedWriter(file)
        for name, content in ({CONFIG: text.encode()} | dict(files or {})).items():
            writer.add_file(name, content)
        yield writer
        writer.finish()


class PackedWriter:
    """Appends tensors to an open file; see `write_packed`."""

    def __init__(self, file: BufferedIOBase):
        """Starts at the beginning of an empty file."""
        self._file = file
        self._records: dict[str, Record] = {}
        self._file.write(bytes(packed_layout.PAGE))

    def add(self, name: str, tensor: Packed | np.ndarray | jax.Array) -> None:
        """Writes one tensor.

        Args:
          name: its Hugging Face name.
          tensor: a packed matrix, or an array that is stored as it is.

        Raises:
          OSError: the disk is full; `write_packed` says it in one sentence.
          ValueError: the name is there already, or the file cannot hold such a tensor.
        """
        if isinstance(tensor, Packed):
            self._write(name, tensor.format, tensor.shape, tensor.arrays)
        else:
            self._write(name, ARRAY, tensor.shape, {"values": tensor})

    def add_file(self, name: str, content: bytes) -> None:
        """Writes a file to be carried along; raises as `add`."""
        data = np.frombuffer(content, np.uint8)
        self._write(name, FILE, data.shape, {"bytes": data})

    def finish(self) -> None:
        """Writes the index, and the header that points to it; raises as `add`."""
        index = packed_layout.encode_index([*self._records.values()])
        offset = self._file.tell()
        self._file.write(index)
        self._file.seek(0)
        header = packed_layout.encode_header(offset, index, len(self._records))
        self._file.write(header)

    def _write(
        self,
        name: str,
        kind: str,
        shape: tuple[int, ...],
        arrays: Mapping[str, np.ndarray | jax.Array],
    ) -> None:
        if name in self._records:
            raise ValueError(f"{name} is in the file already")
        records = tuple(self._append(role, array) for role, array in arrays.items())
        record = Record(name=name, format=kind, shape=tuple(shape), arrays=records)
        packed_layout.encode_index([record])  # raises where it cannot be stored
        self._records[name] = record

    def _append(self, role: str, array: np.ndarray | jax.Array) -> ArrayRecord:
        """Writes one array and the zeros after it."""
        values = np.asarray(array)
        name, shape = values.dtype.name, values.shape
        if name not in packed_layout.DTYPES:
            raise ValueError(f"{role}: dtype {name} cannot be stored in a packed file")
        values = np.ascontiguousarray(values, packed_layout.DTYPES[name])
        data, offset = values.reshape(-1).view(np.uint8), self._file.tell()
        self._file.write(data.data)
        self._file.write(bytes(-data.size % packed_layout.ALIGNMENT))
        return ArrayRecord(
            name=role,
            dtype=name,
            shape=shape,
            offset=offset,
            crc32=zlib.crc32(data.data),
        )
