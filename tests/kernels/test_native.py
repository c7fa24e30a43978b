"""What the native kernels say of themselves, and what is said without them."""

import pathlib
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import kernels
from sparse_jax.kernels import native
from sparse_jax.types import InputError

built = pytest.mark.skipif(native._module() is None, reason="no native kernels here")


@pytest.fixture
def fresh():
    """Forgets what the module found out once, before and after the test."""
    cached = (native._module, native.available, native.isa)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@built
def test_the_environment_chooses_the_instruction_set(fresh, monkeypatch):
    monkeypatch.setenv("SPARSE_JAX_ISA", "portable")
    assert native.isa() == "portable"
    native.isa.cache_clear()
    monkeypatch.setenv("SPARSE_JAX_ISA", "avx1024")
    with pytest.raises(InputError, match=r"SPARSE_JAX_ISA: .*avx1024: this CPU has"):
        native.isa()


@built
def test_read_bandwidth_is_a_rate():
    assert native.read_bandwidth(2**20, repeats=1, threads=1) > 1e6


def test_without_native_kernels_one_line_says_so(fresh, monkeypatch, capsys):
    monkeypatch.setattr(native, "_module", lambda: None)
    leaf = kernels.pack("dense_float32", np.ones((3, 5), np.float32))
    for _ in range(2):
        assert kernels.dot(jnp.ones((1, 5)), leaf).tolist() == [[5.0, 5.0, 5.0]]
    assert capsys.readouterr().err.count("native kernels are not installed") == 1
    with pytest.raises(InputError, match="'avx2' needs the native kernels"):
        kernels.dot(jnp.ones((1, 5)), leaf, implementation="avx2")
    monkeypatch.undo()  # the fixture clears the real function's cache


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here")
@pytest.mark.parametrize("source", ["dense_kernels.cc", "n16_kernels.cc"])
def test_kernels_share_no_function_with_other_instruction_sets(source, tmp_path):
    """The linker keeps one copy of an inline function, perhaps the AVX-512 one."""
    folder = pathlib.Path(kernels.__file__).parent / "cpu"
    compiled = tmp_path / "kernels.o"
    options = ["-std=c++17", "-O1", "-DSPARSE_JAX_ISA=portable"]
    command = ["g++", *options, "-c", str(folder / source), "-o", str(compiled)]
    subprocess.run(command, check=True)
    symbols = subprocess.run(
        ["nm", "-C", str(compiled)], check=True, capture_output=True, text=True
    )
    kinds = [line.split()[-2] for line in symbols.stdout.splitlines() if line]
    assert not {"W", "V", "u"} & set(kinds), symbols.stdout
