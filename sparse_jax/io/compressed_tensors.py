"""Quantised matrices as llm-compressor and vLLM keep them ("compressed-tensors").

A linear matrix `NAME.weight` [out, in] is stored as codes, scales and zero points,

    w = scale * (code - zero)

    int-quantized, naive-quantized  NAME.weight         I8 [out, in]: symmetric codes,
                                    or asymmetric ones less 2^(bits - 1)
    pack-quantized                  NAME.weight_packed  I32 [out, ceil(in * bits / 32)]:
                                    the same codes in words, see `words`
                                    NAME.weight_shape   I64 or I32 [2]: out, in
    all                             NAME.weight_scale   float [out, scales]: one for
                                    each row or each group of inputs; or one for all
    asymmetric                      NAME.weight_zero_point  less 2^(bits - 1), too: I8
                                    [out, scales]; of packed codes in groups or rows
                                    I32 [ceil(out * bits / 32), scales], of those in
                                    blocks of one row I8, too
    static activations              NAME.input_scale    float [1]

with 2, 3, 4 or 8 bits, as `quantization_config` says.

Source: https://github.com/vllm-project/compressed-tensors
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int8

from sparse_jax.io import words
from sparse_jax.io.quantization_config import Quantization, Scheme
from sparse_jax.io.safetensors_file import FLOATS, Entry
from sparse_jax.quant import Grid
from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedEntry(Entry):
    """A matrix that is stored as codes and scales; as an `Entry`, it is w in float32.

    Attributes:
      stored: where the codes lie.
      scales: where the scales lie.
      zeros: where the zero points lie; None where codes are symmetric.
      input_scale: where the static scale of the inputs lies; None without one.
      scheme: how it is quantised.
    """

    stored: Entry
    scales: Entry
    zeros: Entry | None = None
    input_scale: Entry | None = None
    scheme: Scheme

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points in the file."""
        zeros = self.zeros.nbytes if self.zeros else 0
        return self.stored.nbytes + self.scales.nbytes + zeros

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "rows in"]:
        """The rows [start, stop) of w; raises as `panels`."""
        codes_OI, scales_OG = self.codes(start, stop), self.row_scales(start, stop)
        zeros_OG = self.row_zeros(start, stop)
        if zeros_OG is None:
            return codes_OI * self._of_inputs(scales_OG)
        zeros_OG = zeros_OG - np.float32(1 << self.scheme.bits - 1)
        return (codes_OI - self._of_inputs(zeros_OG)) * self._of_inputs(scales_OG)

    def take(self, ids: np.ndarray) -> Float32[np.ndarray, "rows in"]:
        """The rows of w at increasing `ids`; raises as `panels`."""
        return np.concatenate([self.rows(i, i + 1) for i in ids.tolist()])

    def read(self) -> Float32[np.ndarray, "out in"]:
        """The whole matrix; raises as `panels`."""
        return self.rows(0, self.shape[0])

    def codes(self, start: int, stop: int) -> Int8[np.ndarray, "rows in"]:
        """The codes of the rows [start, stop), asymmetric ones less 2^(bits - 1).

        Raises as `panels`.
        """
        stored = self.stored.rows(start, stop)
        if not self.scheme.packed:
            return stored
        return words.unpack(stored, self.scheme.bits, self.shape[1])

    def row_scales(self, start: int, stop: int) -> Float32[np.ndarray, "rows scales"]:
        """The scales of the rows [start, stop); raises as `panels`."""
        if math.prod(self.scales.shape) == 1:  # for the whole matrix
            return np.full((stop - start, 1), self.scales.read(), np.float32)
        scales = self.scales.rows(start, stop).astype(np.float32)
        return scales.reshape(stop - start, -1)

    def row_zeros(
        self, start: int, stop: int
    ) -> Float32[np.ndarray, "rows scales"] | None:
        """The zero points of the rows [start, stop), 0 to 2^bits - 1, as of a `Grid`.

        None where codes are symmetric; raises as `panels`.
        """
        if self.zeros is None:
            return None
        bits = self.scheme.bits
        if self.zeros.dtype == "I8":
            zeros_OG = self.zeros.rows(start, stop).reshape(stop - start, -1)
        else:
            first = start // words.WORD * words.WORD  # where a word begins
            last = words.count(stop, bits)
            packed = self.zeros.rows(first * bits // words.WORD, last)
            zeros_OG = words.unpack(packed.T, bits, stop - first).T[start - first :]
        return zeros_OG.astype(np.float32) + np.float32(1 << bits - 1)

    def grid(self) -> Grid:
        """The grid of w.T [in, out]; raises as `panels`."""
        n_out = self.shape[0]
        zeros_OG = self.row_zeros(0, n_out)
        return Grid(
            config=self.scheme.grid,
            scales=jnp.asarray(self.row_scales(0, n_out).T),
            zeros=None if zeros_OG is None else jnp.asarray(zeros_OG.T),
        )

    def read_input_scale(self) -> float:
        """The static scale of the inputs, where there is one; raises as `panels`."""
        assert self.input_scale is not None, self.name
        return float(self.input_scale.read().reshape(()))

    def _of_inputs(self, leaf_OG: np.ndarray) -> np.ndarray:
        """The scale or zero point of each input."""
        width = self.scheme.group or self.shape[1]
        return np.repeat(leaf_OG, width, axis=1)[:, : self.shape[1]]


def layout(
    scheme: Scheme, shape: tuple[int, ...]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the tensors of a matrix are.

    Args:
      scheme: how it is quantised.
      shape: (out, in).

    Returns:
      What follows NAME. -> dtype and shape; any dtype in `FLOATS` serves for scales.
    """
    n_out, n_in = shape
    scales = n_out, scheme.grid.groups(n_in)
    found: dict[str, tuple[str, tuple[int, ...]]] = {"weight": ("I8", shape)}
    if scheme.packed:
        packed = n_out, words.count(n_in, scheme.bits)
        found = {"weight_packed": ("I32", packed), "weight_shape": ("I64", (2,))}
    found["weight_scale"] = "F32", scales
    if not scheme.symmetric:
        whole_words = words.count(n_out, scheme.bits), scales[1]
        packed = scheme.packed and not scheme.blocks
        found["weight_zero_point"] = ("I32", whole_words) if packed else ("I8", scales)
    if scheme.activations == "static":
        found["input_scale"] = "F32", (1,)
    return found


def take_quantized(
    entries: dict[str, Entry],
    name: str,
    shape: tuple[int, ...],
    known: Quantization,
) -> QuantizedEntry | None:
    """Takes the tensors of one matrix out of those of a checkpoint.

    Args:
      entries: tensor name -> where it lies; those that are used are removed.
      name: "NAME.weight".
      shape: (out, in) of the matrix.
      known: what `config.json` says.

    Returns:
      The matrix; None where it is not quantised.

    Raises:
      InputError: its tensors do not fit the shape or any scheme.
    """
    packed = f"{name}_packed" in entries
    stored = entries.get(f"{name}_packed") or entries.get(name)
    if stored is None or (stored.dtype in FLOATS and not packed):
        return None
    module = name.removesuffix(".weight")
    _refuse_order(entries, f"{name}_g_idx")
    scales, sizes = entries.get(f"{name}_scale"), entries.get(f"{name}_shape")
    if scales is None or (packed and sizes is None):
        missing = f"{name}_scale" if scales is None else f"{name}_shape"
        raise InputError(f"{stored.file}: tensor {missing!r} is missing")
    zeros = entries.get(f"{name}_zero_point")
    schemes = known.schemes(module)
    given = stored, scales, zeros
    scheme = next((one for one in schemes if _fits(one, shape, *given)), None)
    if scheme is None:
        with_zeros = f" and zero points of {_words(zeros)}" if zeros else ""
        raise InputError(
            f"{stored.file}: tensor {stored.name!r} of {_words(stored)} with scales of "
            f"{_words(scales)}{with_zeros} is no matrix {list(shape)} of any scheme "
            f"that config.json names: {schemes}"
        )
    if sizes is not None:
        _check_shape(sizes, shape)
    inputs = _input_scale(entries, f"{module}.input_scale", scheme)
    for used in (stored, scales, sizes, zeros, inputs):
        if used is not None:
            del entries[used.name]
    return QuantizedEntry(
        file=stored.file,
        name=name,
        dtype="F32",
        shape=shape,
        offset=stored.offset,
        stored=stored,
        scales=scales,
        zeros=zeros,
        input_scale=inputs,
        scheme=scheme,
    )


def _words(entry: Entry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def _refuse_order(entries: dict[str, Entry], name: str) -> None:
    if name in entries:
        raise InputError(
            f"{entries[name].file}: tensor {name!r} orders the inputs of a matrix by "
            "activation (actorder 'group'), which is not supported; quantise it again "
            "with actorder 'weight'"
        )


def _fits(
    scheme: Scheme,
    shape: tuple[int, ...],
    stored: Entry,
    scales: Entry,
    zeros: Entry | None,
) -> bool:
    """Whether tensors have the dtypes and shapes that a scheme gives a matrix."""
    if scheme.blocks and not scheme.group and scheme.blocks != shape[1]:
        return False
    expected = layout(scheme, shape)
    _, by_row = expected["weight_scale"]
    shapes = [by_row]
    if not scheme.group:
        shapes += [shape[:1], (), (1,), (1, 1)]
    if not scheme.symmetric:
        dtype, whole = expected["weight_zero_point"]
        if zeros is None or zeros.dtype != dtype or scales.shape not in shapes[:2]:
            return False
        if zeros.shape != whole and (scheme.packed or zeros.shape != scales.shape):
            return False
    elif zeros is not None:
        return False
    codes = next(iter(expected.values()))
    fitting = scales.shape in shapes and scales.dtype in FLOATS
    return fitting and (stored.dtype, stored.shape) == codes


def _input_scale(entries: dict[str, Entry], name: str, scheme: Scheme) -> Entry | None:
    entry = entries.get(name)
    if scheme.activations != "static":
        return None  # one that is there all the same belongs to nothing
    if entry is None or math.prod(entry.shape) != 1 or entry.dtype not in FLOATS:
        found = "nothing" if entry is None else _words(entry)
        raise InputError(
            f"tensor {name!r} must hold the static scale of the inputs, one float, "
            f"found {found}"
        )
    return entry


def _check_shape(sizes: Entry, shape: tuple[int, ...]) -> None:
    found = sizes.read().tolist() if sizes.shape == (2,) else list(sizes.shape)
    if sizes.dtype not in ("I64", "I32") or found != list(shape):
        raise InputError(
            f"{sizes.file}: tensor {sizes.name!r} must hold {list(shape)}, found "
            f"{found} of {sizes.dtype}"
        )
