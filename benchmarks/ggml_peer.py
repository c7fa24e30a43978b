"""ggml's products, through the shared libraries that llama-cpp-python brings.

    ggml f32, f16       dense
    ggml q8_0, q4_0     blocks of 32 inputs with a float16 scale each; activations are
                        rounded to int8 by such blocks, too
    ggml q4_0 repacked  the same, 8 rows interleaved as llama.cpp does when it loads

All copies of a matrix are nodes of one graph, computed in one call, one after the
other; for the time of a product alone, each has a graph of its own.
"""

import ctypes
import importlib.util
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p

import numpy as np
from rotation import copies_of

TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2, "q4_0 repacked": 2}


class Params(ctypes.Structure):
    """struct ggml_init_params."""

    _fields_ = (("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool))


Log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
"""ggml_log_callback."""

# The result and the arguments of what is called, from ggml.h and its neighbours.
FUNCTIONS = {
    "ggml_log_set": (None, Log, c_void_p),
    "ggml_init": (c_void_p, Params),
    "ggml_free": (None, c_void_p),
    "ggml_tensor_overhead": (c_size_t,),
    "ggml_graph_overhead_custom": (c_size_t, c_size_t, c_bool),
    "ggml_nbytes": (c_size_t, c_void_p),
    "ggml_new_tensor_2d": (c_void_p, c_void_p, c_int, c_int64, c_int64),
    "ggml_mul_mat": (c_void_p, c_void_p, c_void_p, c_void_p),
    "ggml_new_graph_custom": (c_void_p, c_void_p, c_size_t, c_bool),
    "ggml_build_forward_expand": (None, c_void_p, c_void_p),
    "ggml_quantize_chunk": (
        *(c_size_t, c_int, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int64, c_void_p),
    ),
    "ggml_backend_cpu_init": (c_void_p,),
    "ggml_backend_free": (None, c_void_p),
    "ggml_backend_cpu_set_n_threads": (None, c_void_p, c_int),
    "ggml_backend_cpu_buffer_type": (c_void_p,),
    "ggml_backend_cpu_reg": (c_void_p,),
    "ggml_backend_reg_dev_get": (c_void_p, c_void_p, c_size_t),
    "ggml_backend_reg_get_proc_address": (c_void_p, c_void_p, c_char_p),
    "ggml_backend_buft_name": (c_char_p, c_void_p),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, c_void_p, c_void_p),
    "ggml_backend_buffer_free": (None, c_void_p),
    "ggml_backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "ggml_backend_graph_compute": (c_int, c_void_p, c_void_p),
}


class Library:
    """The functions of ggml by name, whichever of its libraries holds them."""

    def __init__(self, folder: pathlib.Path):
        """Loads the libraries; raises OSError or AttributeError where one lacks."""
        names = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
        loaded = [ctypes.CDLL(str(folder / n), ctypes.RTLD_GLOBAL) for n in names]
        for name, (result, *arguments) in FUNCTIONS.items():
            library = next((one for one in loaded if hasattr(one, name)), loaded[0])
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        self._silence = Log(lambda *_: None)  # it names every tensor that it repacks
        self.log_set(self._silence, None)

    def buffer_type(self, repacked: bool) -> int | None:
        """Where weights lie; None: no repacked ones here."""
        if not repacked:
            return self.backend_cpu_buffer_type()
        registry = self.backend_cpu_reg()
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.backend_reg_get_proc_address(registry, name)
        if not address:
            return None
        find = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)
        types = find(self.backend_reg_dev_get(registry, 0))
        for kind in itertools.takewhile(bool, types or ()):
            if self.backend_buft_name(kind) == b"CPU_REPACK":
                return kind
        return None


class Graphs:
    """As `rotation.Rotation`: copies of a matrix, and graphs that multiply by them."""

    def __init__(self, ggml, kind: int, buffer_type, w_OI, x_BI, megabytes: int):
        """Quantises the weights, allocates everything and runs it once."""
        self._ggml, (n_out, n_in) = ggml, w_OI.shape
        self._backend = ggml.backend_cpu_init()
        threads = len(os.sched_getaffinity(0))
        ggml.backend_cpu_set_n_threads(self._backend, threads)
        self._contexts, self._buffers = [], []
        content = np.empty(w_OI.nbytes, np.uint8)
        data = w_OI.ctypes.data, content.ctypes.data
        self.nbytes = ggml.quantize_chunk(kind, *data, 0, n_out, n_in, None)
        self.n = copies_of(self.nbytes, megabytes)
        weights = self._context()
        copies = [ggml.new_tensor_2d(weights, kind, n_in, n_out) for _ in range(self.n)]
        self._allocate(weights, buffer_type)
        for copy in copies:
            ggml.backend_tensor_set(copy, content.ctypes.data, 0, self.nbytes)
        work = self._context()
        x = ggml.new_tensor_2d(work, TYPES["f32"], n_in, len(x_BI))
        self._results = [ggml.mul_mat(work, copy, x) for copy in copies]
        self._whole = self._graph(work, self._results)
        self._single = [self._graph(work, [result]) for result in self._results]
        self._allocate(work, ggml.backend_cpu_buffer_type())
        ggml.backend_tensor_set(x, x_BI.ctypes.data, 0, x_BI.nbytes)
        self._shape = len(x_BI), n_out
        self._compute(self._whole)

    def _context(self) -> int:
        """A place for the descriptions of tensors and graphs."""
        ggml, most = self._ggml, 2 * self.n + 8
        size = most * ggml.tensor_overhead() + ggml.graph_overhead_custom(most, False)
        size += (self.n + 1) * ggml.graph_overhead_custom(8, False)
        self._contexts.append(ggml.init(Params(size, None, True)))
        return self._contexts[-1]

    def _allocate(self, context: int, buffer_type) -> None:
        allocate = self._ggml.backend_alloc_ctx_tensors_from_buft
        self._buffers.append(allocate(context, buffer_type))

    def _graph(self, context: int, results: list[int]) -> int:
        size = 8 if len(results) == 1 else 2 * self.n + 8
        graph = self._ggml.new_graph_custom(context, size, False)
        for result in results:
            self._ggml.build_forward_expand(graph, result)
        return graph

    def _compute(self, graph: int) -> None:
        status = self._ggml.backend_graph_compute(self._backend, graph)
        assert status == 0, f"ggml_backend_graph_compute: status {status}"

    def result(self) -> np.ndarray:
        """Of the last product, [B, out]."""
        y_BO = np.empty(self._shape, np.float32)
        last = self._results[-1]
        self._ggml.backend_tensor_get(last, y_BO.ctypes.data, 0, y_BO.nbytes)
        return y_BO

    def time_chain(self) -> float:
        """Seconds for a product, all of them in one graph."""
        start = time.perf_counter()
        self._compute(self._whole)
        return (time.perf_counter() - start) / self.n

    def time_dispatch(self) -> float:
        """Seconds for a product that Python launches alone."""
        start = time.perf_counter()
        for graph in self._single:
            self._compute(graph)
        return (time.perf_counter() - start) / self.n

    def free(self) -> None:
        """Gives all memory back."""
        for buffer in self._buffers:
            self._ggml.backend_buffer_free(buffer)
        for context in self._contexts:
            self._ggml.free(context)
        self._ggml.backend_free(self._backend)


def peers(arguments, w_OI, x_BI, check) -> Iterator[tuple]:
    """(name, bytes, rotation) of every type; none where ggml is not installed."""
    from sparse_jax.kernels import native

    found = importlib.util.find_spec("llama_cpp")
    if found is None or not found.submodule_search_locations:
        print("  llama-cpp-python is not installed: no ggml rows", file=sys.stderr)
        return
    folder = pathlib.Path(found.submodule_search_locations[0]) / "lib"
    try:
        ggml = Library(folder)
    except (OSError, AttributeError) as error:
        print(f"  ggml cannot be called: {error}", file=sys.stderr)
        return
    x_BI = np.ascontiguousarray(x_BI)
    for name, kind in TYPES.items():
        repacked = name.endswith("repacked")
        buffer_type = ggml.buffer_type(repacked)
        # On x86, ggml interleaves 8 rows with AVX2 and not at all without.
        fits = "avx2" in native.supported_isas() and len(w_OI) % 8 == 0
        if buffer_type is None or (repacked and not fits):
            print(f"  ggml {name} is missing here", file=sys.stderr)
            continue
        graphs = Graphs(ggml, kind, buffer_type, w_OI, x_BI, arguments.megabytes)
        check(f"ggml {name}", graphs.result(), w_OI, x_BI)
        yield f"ggml {name}", graphs.nbytes, graphs
        graphs.free()
