"""Packed models read: the weights stay in the file, which is mapped into memory.

Every array is 64-byte aligned in the file, so that JAX takes it over where it lies. The
file is read once, for its checksums, and must not be changed while a model is in use.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from sparse_jax.data.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer
from sparse_jax.io import names, packed_layout, packed_parse
from sparse_jax.io.config_json import config_from_json
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.locate import check_tokenizer
from sparse_jax.io.packed_layout import ARRAY, DTYPES, FILE, Record
from sparse_jax.io.packed_table import TABLES
from sparse_jax.io.packed_writer import CONFIG
from sparse_jax.kernels import Packed, find_format, native
from sparse_jax.kernels.format import ArraySpec
from sparse_jax.models.config import LlamaConfig
from sparse_jax.tree import from_paths
from sparse_jax.types import InputError, Params, Tree

EMBEDDING, HEAD = "embed/embedding", "lm_head/kernel"

FLOATS = ("float32", "bfloat16", "float16")
"""Dtypes of tensors that are stored as arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedModel:
    """A model whose matrices are packed.

    Attributes:
      config: architecture.
      params: the tree of `Params`, where
        - each kernel of `layers` is a tuple of L `Packed` leaves [out, in];
        - `lm_head/kernel` is `Packed` and is there also where embeddings are tied;
        - `embed/embedding` is [V, D] in the dtype of the file or, where embeddings are
          tied, the head's own leaf: see `look_up`;
        - norms and biases are float32, stacked.
      tokenizer: the model's own; None when it carries none.
      source: in words, what it was.
    """

    config: LlamaConfig
    params: Params
    tokenizer: Tokenizer | None
    source: str


def read_packed(path: str | Path, *, verify: bool = True) -> PackedModel:
    """Reads a packed file.

    Args:
      path: the file.
      verify: compare checksums; False leaves most of the file unread until it is used.

    Raises:
      InputError: not a packed file, a newer or damaged one, a storage type that is not
        known, or tensors that do not fit the configuration.
    """
    path = Path(path)
    content = _map(path)
    try:
        records = packed_parse.parse(content, verify=verify)
        return _Reader(content, records).model(f"packed file {path}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _map(path: Path) -> np.ndarray:
    """The bytes of a file, read when they are used."""
    try:
        if path.stat().st_size == 0:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


class _Reader:
    """Makes a model of the records of a file; messages do not name the file."""

    def __init__(self, content: np.ndarray, records: list[Record]):
        self._content = content
        self._files = {r.name: r for r in records if r.format == FILE}
        self._tensors = {r.name: r for r in records if r.format != FILE}

    def model(self, source: str) -> PackedModel:
        files = {name: self._bytes(record) for name, record in self._files.items()}
        config = _config(files)
        return PackedModel(
            config=config,
            params=self._params(config),
            tokenizer=_tokenizer(files, config),
            source=source,
        )

    def _bytes(self, record: Record) -> bytes:
        (array,) = record.arrays
        return self._content[array.offset : array.end].tobytes()

    def _params(self, config: LlamaConfig) -> Params:
        _check_sizes(config, len(self._tensors))
        shapes = leaf_shapes(config)
        leaves = {path: self._leaf(path, shapes[path], config) for path in shapes}
        if config.tie_embeddings:
            table = leaves[EMBEDDING]
            shape = (config.d_model, config.vocab_size)
            leaves[HEAD] = (
                table if isinstance(table, Packed) else self._leaf(HEAD, shape, config)
            )
        if self._tensors:
            name = next(iter(self._tensors))
            raise InputError(f"tensor {name!r} is not part of the model")
        return from_paths(leaves)

    def _leaf(self, path: str, shape: tuple[int, ...], config: LlamaConfig) -> Tree:
        """A leaf of the tree from the records of all layers."""
        slots = names.slots([path], range(config.n_layers))
        parts = [self._tensor(slot, names.slot_shape(slot, shape)) for slot in slots]
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        packed = tuple(part for part in parts if isinstance(part, Packed))
        if path == EMBEDDING:
            if arrays:
                return jax.device_put(arrays[0])
            if not config.tie_embeddings or packed[0].format not in TABLES:
                raise InputError(
                    f"tensor {slots[0].name!r}: only a tied table may be packed, as "
                    f"one of {list(TABLES)}, found {packed[0].format}"
                )
            return packed[0]
        if packed:
            return packed if names.is_stacked(path) else packed[0]
        stacked = np.stack(arrays) if names.is_stacked(path) else arrays[0]
        return jax.device_put(stacked.astype(np.float32))

    def _tensor(self, slot: names.Slot, shape: tuple[int, ...]) -> Packed | np.ndarray:
        record = self._tensors.pop(slot.name, None)
        if record is None:
            raise InputError(f"tensor {slot.name!r} of shape {list(shape)} is missing")
        packed = record.format != ARRAY
        if record.shape != shape or (
            packed != slot.transposed and slot.path != EMBEDDING
        ):
            kind = "a storage type" if slot.transposed else "format 'array'"
            raise InputError(
                f"tensor {slot.name!r} must have shape {list(shape)} and {kind}, found "
                f"{list(record.shape)} and {record.format!r}"
            )
        arrays = {array.name: self._array(array) for array in record.arrays}
        if packed:
            return _packed(record, arrays)
        (values,) = arrays.values()
        if values.dtype.name not in FLOATS:
            raise InputError(
                f"tensor {slot.name!r} must hold one of {list(FLOATS)}, found "
                f"{values.dtype.name}"
            )
        return values

    def _array(self, array: packed_layout.ArrayRecord) -> np.ndarray:
        data = np.asarray(self._content[array.offset : array.end])
        return data.view(DTYPES[array.dtype]).reshape(array.shape)


def _packed(record: Record, arrays: dict[str, np.ndarray]) -> Packed:
    """A matrix in its storage type, every number checked that a kernel trusts."""
    name, shape = record.name, (record.shape[0], record.shape[1])
    try:
        kind = find_format(record.format)
        kind.check_shape(shape)
    except InputError as error:
        raise InputError(f"tensor {name!r}: {error}") from error
    specs = kind.array_specs(shape)
    required = {role for role, spec in specs.items() if not spec.optional}
    if not required <= arrays.keys() <= specs.keys():
        raise InputError(
            f"tensor {name!r}, {record.format}: expected the arrays {list(specs)}, "
            f"found {list(arrays)}"
        )
    arrays = {role: arrays[role] for role in specs if role in arrays}
    for role, array in arrays.items():
        _check_array(
            f"tensor {name!r}, {record.format}, array {role}", specs[role], array
        )
    # Without the native kernels nothing trusts the content: JAX checks what it indexes.
    wrong = native.check(kind.name, shape, arrays) if native.supported_isas() else ""
    if wrong:
        raise InputError(f"tensor {name!r}, {wrong}")
    placed = {role: jax.device_put(array) for role, array in arrays.items()}
    return Packed(format=kind.name, shape=shape, arrays=placed)


def _check_array(where: str, spec: ArraySpec, array: np.ndarray) -> None:
    fits = len(spec.shape) == array.ndim and all(
        wanted in (None, found)
        for wanted, found in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype.name != spec.dtype or not fits:
        sizes = ["any" if size is None else size for size in spec.shape]
        raise InputError(
            f"{where}: expected {spec.dtype} of shape {sizes}, found "
            f"{array.dtype.name} of shape {list(array.shape)}"
        )


def _check_sizes(config: LlamaConfig, n_tensors: int) -> None:
    """Sizes that no tensor of the file can have must not reach the model's code."""
    sizes = dataclasses.asdict(config) | {
        "query width": config.n_heads * config.head_width
    }
    for name, value in sizes.items():
        if isinstance(value, int) and abs(value) > 2**31 - 1:
            raise InputError(f"its {CONFIG}: {name} must be below 2^31, found {value}")
    if config.n_layers > n_tensors:
        raise InputError(
            f"its {CONFIG} describes {config.n_layers} layers, found {n_tensors} "
            "tensors"
        )


def _config(files: Mapping[str, bytes]) -> LlamaConfig:
    if CONFIG not in files:
        raise InputError(f"it holds no {CONFIG}; export the model again")
    try:
        values = json.loads(files[CONFIG])
    except (ValueError, RecursionError) as error:
        raise InputError(f"its {CONFIG} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"its {CONFIG} is not a JSON object")
    return config_from_json(values, CONFIG)


def _tokenizer(files: Mapping[str, bytes], config: LlamaConfig) -> Tokenizer | None:
    carried = {name: content for name, content in files.items() if name != CONFIG}
    if "tokenizer.json" in carried:
        tokenizer = JsonTokenizer(carried)
    elif "tokenizer.model" in carried:
        tokenizer = SentencePieceTokenizer(carried)
    else:
        return None
    check_tokenizer(tokenizer, config, "its tokenizer")
    return tokenizer
