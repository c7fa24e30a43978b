"""Unstructured float32 and bfloat16: masks of 16 outputs, and the kept values."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sparse_jax.kernels.format import (
    PANEL,
    Arrays,
    ArraySpec,
    Format,
    from_panels,
    pad_to,
    panels,
)
from sparse_jax.types import InputError

SUPERBLOCK = 64
"""Inputs whose values one offset finds."""

PADDING = 32
"""Zeros after the last value: kernels load whole registers."""


def _pack(w_OI: np.ndarray, mask_OI: np.ndarray, dtype: Any) -> Arrays:
    n_panels, n_blocks = panels(w_OI.shape[0]), panels(w_OI.shape[1])
    masks = np.empty((n_panels, n_blocks, PANEL), np.uint16)
    counts = np.zeros((n_panels, panels(w_OI.shape[1], SUPERBLOCK)), np.int64)
    values = np.zeros(int(mask_OI.sum()) + PADDING, dtype)
    start = 0
    # Panel by panel: nothing beside the result is larger than a panel.
    for panel in range(n_panels):
        rows = slice(PANEL * panel, PANEL * (panel + 1))
        kept_IR = pad_to(pad_to(mask_OI[rows], 0, PANEL), 1, PANEL).T.copy()
        w_IR = pad_to(pad_to(w_OI[rows], 0, PANEL), 1, PANEL).T
        bits = np.packbits(kept_IR, axis=1, bitorder="little").view(np.uint16)
        masks[panel] = bits.reshape(n_blocks, PANEL)
        kept_SIR = pad_to(kept_IR, 0, SUPERBLOCK).reshape(-1, SUPERBLOCK, PANEL)
        counts[panel] = kept_SIR.sum(axis=(1, 2))
        kept = w_IR[kept_IR]
        values[start : start + kept.size] = kept.astype(dtype)
        start += kept.size
    if start >= 2**32:
        raise InputError(f"it keeps {start} weights, expected less than 2^32")
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
    return {"masks": masks, "offsets": offsets, "values": values}


def _weights(arrays: Arrays, shape: tuple[int, int], xp: Any) -> Any:
    masks_PI = arrays["masks"].reshape(arrays["masks"].shape[0], -1, 1)
    kept_PIR = (masks_PI >> xp.arange(PANEL, dtype=xp.uint16)) & 1
    # The values stand in the order of the kept entries: count them.
    place = xp.cumsum(kept_PIR.reshape(-1).astype(xp.int32)) - 1
    w = xp.where(
        kept_PIR.reshape(-1) > 0, arrays["values"].astype(np.float32)[place], 0
    )
    w_PIR = w.reshape(kept_PIR.shape).astype(np.float32)
    return from_panels(w_PIR.transpose(0, 2, 1), shape[0])[:, : shape[1]]


def _dot(x_BI: jax.Array, arrays: Arrays, shape: tuple[int, int]) -> jax.Array:
    return jnp.einsum("bi,oi->bo", x_BI, _weights(arrays, shape, jnp))


def _specs(shape: tuple[int, int], dtype: str) -> dict[str, ArraySpec]:
    n_panels = panels(shape[0])
    n_offsets = n_panels * panels(shape[1], SUPERBLOCK) + 1
    return {
        "masks": ArraySpec(dtype="uint16", shape=(n_panels, panels(shape[1]), PANEL)),
        "offsets": ArraySpec(dtype="uint32", shape=(n_offsets,)),
        "values": ArraySpec(dtype=dtype, shape=(None,)),
    }


def _format(name: str, dtype: str, numpy_dtype: Any, bits: int) -> Format:
    return Format(
        name=name,
        dtype=dtype,
        lossless=True,
        summary=f"unstructured, {bits} bits for every kept weight and 1 for each",
        pack=partial(_pack, dtype=numpy_dtype),
        unpack=partial(_weights, xp=np),
        reference=_dot,
        array_specs=partial(_specs, dtype=dtype),
        expected_bits=lambda n_out, n_in, density: (
            bits * density + 1 + 32 / (PANEL * SUPERBLOCK)
        ),
    )


BITMASK_FLOAT32 = _format("bitmask_float32", "float32", np.float32, 32)
"""`masks` uint16 [panels, ceil(in / 16), 16], `offsets` uint32 [panels * superblocks +
1], and `values` float32 [kept + 32]. Bit r of masks[p, i // 16, i % 16] says whether
w[16 p + r, i] is kept; the kept weights stand in `values` by panel, input and output,
those of panel p and inputs from 64 s on at offsets[p * superblocks + s]; 32 zeros end
the array."""

BITMASK_BFLOAT16 = _format("bitmask_bfloat16", "bfloat16", ml_dtypes.bfloat16, 16)
"""As BITMASK_FLOAT32, the values rounded to bfloat16, half to even. Activations and
sums are float32."""
