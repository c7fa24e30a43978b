"""Makes the seeds of the fuzzing harness: small packed files of every storage type.

python fuzz/make_corpus.py DIRECTORY
"""

import pathlib
import sys

import numpy as np

from sparse_jax.io import packed_writer
from sparse_jax.kernels import FORMATS, Packed, from_codes, pack, pack_codes
from sparse_jax.kernels.format import PANEL

# Whole and ragged panels of 16, some for each of four streams, superblocks of 64.
SHAPES = ((16, 64), (40, 48), (160, 128), (7, 272), (33, 100))


def matrix(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """A random matrix of a pattern that the type is made for."""
    rng = np.random.default_rng(seed)
    w_OI = rng.standard_normal(shape).astype(np.float32)
    if shape[1] % PANEL:
        return w_OI * (rng.random(shape) < 0.4)
    blocks = w_OI.reshape(shape[0], -1, PANEL)
    if kind.startswith("n16"):
        ranks = rng.random(blocks.shape).argsort(-1)
        blocks *= ranks < 3 + seed % 6
    elif kind.startswith("group"):
        blocks *= rng.random(blocks.shape[:2])[..., None] < 0.4
    else:
        w_OI *= rng.random(shape) < (0.1, 0.4, 0.9)[seed % 3]
    return w_OI


def write(path: pathlib.Path, kinds: list[str], shapes, *, others: bool) -> None:
    """One file with a matrix of each type and shape that fit together."""
    with path.open("wb") as file:
        writer = packed_writer.PackedWriter(file)
        if others:
            writer.add_file("config.json", b"{}")
            writer.add("norm", np.ones(16, np.float32))
        for kind in kinds:
            for number, shape in enumerate(shapes):
                if shape[1] % FORMATS[kind].input_multiple == 0:
                    leaf = pack(kind, matrix(kind, shape, number))
                    writer.add(f"{kind}.{number}", leaf)
        writer.finish()


def given_codes() -> dict[str, Packed]:
    """What `pack` does not make: finer scales, zero points, scales of rows."""
    rng = np.random.default_rng(0)
    codes_OI = rng.integers(-8, 8, (40, 272)).astype(np.int8)
    leaves = {}
    for width in (32, 64, 128):
        scales_OS = np.full((40, -(-272 // width)), 0.5, np.float32)
        zeros_OS = rng.integers(-8, 8, scales_OS.shape).astype(np.int8)
        for name, zeros in (("symmetric", None), ("zeros", zeros_OS)):
            leaves[f"dense_int4.{width}.{name}"] = pack_codes(
                "dense_int4", codes_OI, scales_OS, width=width, zeros_OS=zeros
            )
        if width > 32:
            mask_OI = np.tile(np.arange(16) < 5, (40, 17))
            leaves[f"n16_int4.{width}"] = pack_codes(
                "n16_int4", codes_OI, scales_OS, mask_OI, width=width
            )
    kept_OG = rng.random((40, 17)) < 0.4
    n = int(kept_OG.sum())
    codes_NK, scales_N = rng.integers(0, 16, (n, 16)), rng.integers(1, 256, n)
    zeros_N, rows_O = rng.integers(0, 16, n), np.ones(40, np.float32)
    leaves["group_int4.zeros"] = from_codes(kept_OG, codes_NK, scales_N, zeros_N)
    leaves["group_int4_u8.zeros"] = from_codes(
        kept_OG, codes_NK, scales_N, zeros_N, rows_O
    )
    return leaves


def main(directory: str) -> None:
    """Writes every seed."""
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        for number in range(len(SHAPES)):
            if SHAPES[number][1] % FORMATS[kind].input_multiple == 0:
                path = folder / f"{kind}.{number}.packed"
                write(path, [kind], SHAPES[number : number + 1], others=False)
    for name, leaf in given_codes().items():
        with (folder / f"{name}.packed").open("wb") as file:
            writer = packed_writer.PackedWriter(file)
            writer.add(name, leaf)
            writer.finish()
    write(folder / "all.packed", list(FORMATS), SHAPES[:2], others=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
