"""Matrices that each format can hold, for the tests of every format."""

import numpy as np

from sparse_jax import kernels

LOSSLESS = [name for name, kind in kernels.FORMATS.items() if kind.lossless]


def shape_for(name, shape):
    """The nearest shape that the format can hold."""
    multiple = kernels.FORMATS[name].input_multiple
    return shape[0], -(-shape[1] // multiple) * multiple


def matrix(name, shape, seed=0, kept=None):
    """Random weights and a mask of the kind that a format is made for."""
    rng = np.random.default_rng(seed)
    n_out, n_in = shape
    w_OI = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("bfloat16"):
        w_OI = (w_OI.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if name.startswith("n16"):
        rank = rng.random((n_out, n_in // 16, 16)).argsort(axis=2)
        mask_OI = (rank < (kept or 5)).reshape(shape)
    elif name.startswith("group"):
        groups_OG = rng.random((n_out, n_in // 16)) < (kept or 5) / 16
        mask_OI = np.repeat(groups_OG, 16, axis=1)
    elif name.startswith("dense"):
        mask_OI = np.ones(shape, bool)
    else:
        mask_OI = rng.random(shape) < (kept or 5) / 16
    return w_OI, mask_OI


def activations(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
