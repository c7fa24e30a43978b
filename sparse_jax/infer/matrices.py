"""The matrices of a checkpoint and their masks, one at a time, [out, in] as stored."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, Shaped

from sparse_jax.io import BlockReader, layout, masks_file
from sparse_jax.io.compressed_tensors import QuantizedEntry
from sparse_jax.io.mask_source import MASKS
from sparse_jax.io.names import Slot
from sparse_jax.kernels import PANEL, Packed, pack

# Rows of a table that are packed at a time.
_ROWS = 4096


class Matrices:
    """Reads matrices without transposing them, and without their whole block."""

    def __init__(self, reader: BlockReader):
        """Opens the masks' file, if there is one; raises as `io.load_masks`."""
        self._reader, self._masks = reader, {}
        file = reader.directory / MASKS
        if file.is_file():
            self._masks = masks_file.open_masks(file, reader.config)

    def weights(self, slot: Slot) -> Float[np.ndarray, "out in"]:
        """A matrix in float32."""
        entry = self._reader.entries[slot.name]
        w_OI = np.empty(entry.shape, np.float32)
        for start, rows in entry.panels():
            w_OI[start : start + len(rows)] = rows
        return w_OI

    def codes(
        self, slot: Slot
    ) -> tuple[
        Int8[np.ndarray, "out in"],
        Float32[np.ndarray, "out scales"],
        int,
        Int8[np.ndarray, "out scales"] | None,
    ]:
        """Codes and scales of a quantised matrix, inputs of a scale, and zero points.

        The inputs are 0 where a scale is for a whole row, see `kernels.pack_codes`.
        """
        entry = self._reader.entries[slot.name]
        assert isinstance(entry, QuantizedEntry), slot.name
        codes_OI = np.empty(entry.shape, np.int8)
        for start in range(0, len(codes_OI), entry.panel_rows):
            stop = min(start + entry.panel_rows, len(codes_OI))
            codes_OI[start:stop] = entry.codes(start, stop)
        scales_OS = entry.row_scales(0, len(codes_OI))
        zeros_OS = entry.row_zeros(0, len(codes_OI))
        if zeros_OS is not None:
            zeros_OS = (zeros_OS - 2 ** (entry.scheme.bits - 1)).astype(np.int8)
        return codes_OI, scales_OS, entry.scheme.group, zeros_OS

    def kept(
        self, slot: Slot, w_OI: Shaped[np.ndarray, "out in"]
    ) -> Bool[np.ndarray, "out in"]:
        """The mask of a matrix, True = kept: from its file, else what is not zero.

        Args:
          slot: which matrix.
          w_OI: its weights, or its codes less their zero points.

        Raises:
          InputError: a weight that is marked as pruned is not zero.
        """
        if slot.name not in self._masks:
            return layout.nonzero(w_OI)
        mask = self._masks[slot.name]
        return masks_file.read_checked(mask, [(0, w_OI)], w_OI.shape)

    def pack_dense(self, kind: str, slot: Slot) -> Packed:
        """A whole table in a dense type, whose arrays are by panels of rows.

        Tables are the largest tensors: only some rows are there in float32 at a time.
        """
        entry = self._reader.entries[slot.name]
        n_out, n_in = entry.shape
        arrays: dict[str, np.ndarray] = {}
        for start in range(0, n_out, _ROWS):
            w_OI = entry.rows(start, min(start + _ROWS, n_out)).astype(np.float32)
            for name, part in pack(
                kind, w_OI, np.ones(w_OI.shape, bool)
            ).arrays.items():
                if start == 0:
                    shape = (-(-n_out // PANEL), *part.shape[1:])
                    arrays[name] = np.empty(shape, part.dtype)
                first = start // PANEL
                arrays[name][first : first + len(part)] = part
        return Packed(format=kind, shape=(n_out, n_in), arrays=arrays)
