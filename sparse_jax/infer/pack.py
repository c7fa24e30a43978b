"""A checkpoint packed into one file, one tensor in memory at a time.

matrices            the storage type that suits their zeros, see `choose`, or the
                    one that was asked for; codes and scales of quantised ones as
                    they are
embedding           as it is in the checkpoint: rows are looked up, not multiplied
head                dense; of a tied model it is the embedding, too, stored once
norms and biases    as they are
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparse_jax.infer.choose import (
    GROUP,
    Zeros,
    check_balanced,
    choose,
    code_holders,
    count_zeros,
    fastest,
)
from sparse_jax.infer.matrices import Matrices
from sparse_jax.infer.pack_report import Row, add_totals
from sparse_jax.io import BlockReader, PackedWriter, export, names, write_packed
from sparse_jax.io.compressed_tensors import QuantizedEntry
from sparse_jax.io.entries import leaf_shapes
from sparse_jax.io.names import Slot
from sparse_jax.io.packed_file import EMBEDDING, HEAD
from sparse_jax.kernels import (
    FORMATS,
    Packed,
    code_differences,
    find_format,
    holds_codes,
    pack,
    pack_codes,
)
from sparse_jax.types import InputError

AUTO = "auto"
STORED = ("float32", "bfloat16", "int8", "int4", "int2")
"""Dtypes of stored weights."""

Progress = Callable[[int, int], None]
"""Called as (tensors done, tensors in all)."""

# The dtype of storage types that holds a checkpoint's dtype exactly.
_EXACT = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackConfig:
    """How a checkpoint is packed.

    Attributes:
      format: storage type of all matrices that it can hold; auto = what suits each.
      dtype: of the stored weights, float32, bfloat16, int8, int4 or int2; None = one
        that holds the checkpoint's exactly. A format that is named has its own. Codes
        of a quantised checkpoint are never rounded to other codes.
      head: storage type of the output projection, a dense one; auto = dense_float32 or
        dense_bfloat16, exact for the checkpoint, or for bfloat16 where `dtype` is that.
    """

    format: str = AUTO
    dtype: str | None = None
    head: str = AUTO

    def __post_init__(self):
        if self.dtype not in (None, *STORED):
            raise InputError(f"dtype must be one of {STORED}, found {self.dtype!r}")
        dense = [name for name in FORMATS if name.startswith("dense_")]
        if self.head not in (AUTO, *dense):
            raise InputError(
                f"head must be {AUTO} or one of {dense}, found {self.head!r}"
            )
        if self.format == AUTO:
            return
        own = find_format(self.format).dtype
        if self.dtype not in (None, own):
            raise InputError(
                f"format {self.format} stores {own}, but dtype is {self.dtype}; name "
                "only one of them"
            )

    def dtype_for(self, checkpoint: str) -> str:
        """The dtype of matrices of a checkpoint whose dtype this is."""
        if self.format != AUTO:
            return find_format(self.format).dtype
        return self.dtype or _EXACT[checkpoint]


def pack_checkpoint(
    reader: BlockReader,
    path: str | Path,
    config: PackConfig = PackConfig(),
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a packed file.

    Quantised types round to nearest, by rows or groups; the others lose nothing but
    what `config.dtype` asks for.

    Args:
      reader: the model, see `io.open_blocks`.
      path: the new file.
      config: what to store how.
      progress: called after every tensor.

    Returns:
      What was done, see `pack_report.add_totals`.

    Raises:
      InputError: the file exists, the disk is full, or a format that was named cannot
        hold the pattern of a matrix, or its codes exactly.
    """
    files = reader.tokenizer.files if reader.tokenizer else {}
    slots = names.slots(leaf_shapes(reader.config), range(reader.config.n_layers))
    with write_packed(path, reader.config, reader.unquantized_dtype, files) as writer:
        packer = _Packer(reader, config, writer)
        for done, slot in enumerate(slots, 1):
            packer.add(slot)
            if progress is not None:
                progress(done, len(slots))
    found = ", ".join(dict.fromkeys([*reader.quantized, reader.unquantized_dtype]))
    dtype = config.dtype_for(reader.unquantized_dtype)
    settings = dataclasses.asdict(config) | {"dtype": dtype}
    if reader.quantized and config.format == AUTO and config.dtype is None:
        settings["dtype"] = found
    about = {"model": reader.source, "checkpoint_dtype": found, **settings}
    carried = sum(len(content) for content in files.values())
    return about | add_totals(packer.rows, carried, Path(path).stat().st_size)


class _Packer:
    """Packs one tensor after the other and keeps account in `rows`."""

    def __init__(self, reader: BlockReader, config: PackConfig, writer: PackedWriter):
        self.rows: list[Row] = []
        self._reader, self._config, self._writer = reader, config, writer
        self._matrices = Matrices(reader)
        self._dtype = config.dtype_for(reader.unquantized_dtype)
        self._as_is = config.format == AUTO and config.dtype is None
        # Tables are rounded only where bfloat16 is asked for.
        rounded = self._dtype == "bfloat16"
        self._table = "bfloat16" if rounded else reader.unquantized_dtype
        exact = f"dense_{_EXACT[self._table]}"
        self._head = exact if config.head == AUTO else config.head
        # A tied table lies in the file once, unless that would round the embedding.
        tied = reader.config.tie_embeddings
        self._shared = tied and self._head in (exact, "dense_float32")

    def add(self, slot: Slot) -> None:
        if re.fullmatch(names.LINEAR_KERNELS, slot.path):
            self._add_matrix(slot)
        elif slot.path == EMBEDDING and self._shared:
            self._add_head(slot, slot.name, "embedding and head", "tied: stored once")
        elif slot.path == EMBEDDING:
            self._add_array(slot, "embedding")
            if self._reader.config.tie_embeddings:
                name = names.TABLE[HEAD].template
                self._add_head(slot, name, "head", "tied, but rounded: stored apart")
        elif slot.path == HEAD:
            self._add_head(slot, slot.name, "head")
        else:
            self._add_array(slot, "norms and biases")

    def _add_matrix(self, slot: Slot) -> None:
        quantized = isinstance(self._reader.entries[slot.name], QuantizedEntry)
        with _name_tensor(slot.name):
            if quantized and (self._as_is or self._dtype.startswith("int")):
                self._add_codes(slot)
            else:
                self._add_weights(slot)

    def _add_weights(self, slot: Slot) -> None:
        w_OI = self._matrices.weights(slot)
        kept_OI = self._matrices.kept(slot, w_OI)
        zeros = count_zeros(kept_OI)
        kind, note = self._choose(zeros, choose(zeros, self._dtype))
        leaf = pack(kind, w_OI, _suited(kind, kept_OI, zeros))
        self._writer.add(slot.name, leaf)
        self._account(slot, "packed matrices", leaf, note, zeros.sparsity)

    def _add_codes(self, slot: Slot) -> None:
        codes_OI, scales_OS, width, zeros_OS = self._matrices.codes(slot)
        values_OI = code_differences(codes_OI, zeros_OS, width)
        kept_OI = self._matrices.kept(slot, values_OI)
        zeros = count_zeros(kept_OI)
        given = (codes_OI, scales_OS, width, zeros_OS)
        wanted = ("int8", "int2", "int4") if self._as_is else (self._dtype,)
        kinds = code_holders(zeros, wanted)
        reasons = {kind: holds_codes(kind, *given) for kind in kinds}
        exact = [kind for kind, reason in reasons.items() if reason is None]
        kind, note = self._config.format, ""
        if exact:
            kind, note = self._choose(zeros, fastest(zeros, exact))
        elif kind == AUTO:
            wide = self._as_is and np.abs(values_OI, dtype=np.int16).max() > 15
            kind = "dense_int8" if wide else f"dense_{wanted[-1]}"
            raise InputError(
                f"its codes cannot be taken over as they are: {kind} {reasons[kind]}; "
                "ask for float32, which holds code * scale"
            )
        kept_OI = _suited(kind, kept_OI, zeros)
        leaf = pack_codes(
            kind, codes_OI, scales_OS, kept_OI, width=width, zeros_OS=zeros_OS
        )
        self._writer.add(slot.name, leaf)
        note = "; ".join(filter(None, ["codes taken over", note]))
        self._account(slot, "packed matrices", leaf, note, zeros.sparsity)

    def _choose(self, zeros: Zeros, suited: str) -> tuple[str, str]:
        """The storage type of a matrix and, where it is not the usual one, why."""
        asked, n_in = self._config.format, zeros.shape[1]
        if asked == AUTO:
            odd = n_in % GROUP and not suited.startswith("dense_")
            return suited, f"{n_in} inputs, not a multiple of {GROUP}" if odd else ""
        multiple = find_format(asked).input_multiple
        if n_in % multiple:
            return suited, f"{n_in} inputs, {asked} needs a multiple of {multiple}"
        return asked, ""

    def _add_head(self, slot: Slot, name: str, part: str, note: str = "") -> None:
        with _name_tensor(slot.name):
            leaf = self._matrices.pack_dense(self._head, slot)
        self._writer.add(name, leaf)
        self._account(slot, part, leaf, note)

    def _add_array(self, slot: Slot, part: str) -> None:
        values = self._reader.entries[slot.name].read()
        if slot.path == EMBEDDING:
            values = export.cast(values, self._table, slot.path)
        self._writer.add(slot.name, values)
        self._account(slot, part, values)

    def _account(
        self,
        slot: Slot,
        part: str,
        stored: Packed | np.ndarray,
        note: str = "",
        sparsity: float = 0.0,
    ) -> None:
        entry = self._reader.entries[slot.name]
        size = math.prod(entry.shape)
        row = {
            "name": slot.name,
            "path": slot.path,
            "layer": slot.layer,
            "part": part,
            "shape": list(entry.shape),
            "sparsity": sparsity,
            "bits_per_weight": 8 * stored.nbytes / size,
            "bytes_before": entry.nbytes,
            "bytes_after": stored.nbytes,
            "note": note,
        }
        if isinstance(stored, Packed):
            bits, (n_out, n_in) = find_format(stored.format).expected_bits, stored.shape
            row["format"] = stored.format
            row["expected_bits"] = bits(n_out, n_in, 1.0 - sparsity)
        else:
            row["format"] = stored.dtype.name
        if any(slot.name == other["name"] for other in self.rows):
            row["bytes_before"] = 0  # a head beside the tied embedding
        self.rows.append(row)


@contextlib.contextmanager
def _name_tensor(name: str) -> Iterator[None]:
    """Puts the tensor's name in front of what an InputError says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"tensor {name!r}: {error}") from error


def _suited(kind: str, kept_OI: np.ndarray, zeros: Zeros) -> np.ndarray:
    """The mask as a type wants it; raises InputError where it is for another type.

    Of a group of which any weight is kept, all are: a weight may be zero by chance.
    """
    if kind.startswith("n16_"):
        check_balanced(kind, kept_OI, zeros)
    if not (kind.startswith("group_") and zeros.whole_groups):
        return kept_OI
    groups = kept_OI.reshape(len(kept_OI), -1, GROUP)
    return np.repeat(groups.any(-1), GROUP, axis=1)
