"""Settings and fixtures of the whole suite."""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite is compilation, of programs that run once. `=0` in the environment
# runs it on the code that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Before anything of the package is imported: check jaxtyping's shapes at run time.
from jaxtyping import install_import_hook

install_import_hook("sparse_jax", "beartype.beartype")

import jax
import pytest

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and real models, which the project never depends on."""
    if not SHARED.is_dir():
        pytest.skip("no shared/data beside the checkout")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory) -> pathlib.Path:
    """One cache for the session, so that nothing outside it is read or written."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["SPARSE_JAX_CACHE"] = str(path)
    return path


MAPS = pathlib.Path("/proc/self/maps")
MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees compiled programs when there are many.

    Each has memory maps of its own, and Linux allows a process 65,530 of them. Many
    tests in one process come near, and then XLA's compiler crashes.
    """
    yield
    if not MAPS.exists():
        return
    with MAPS.open() as lines:
        count = sum(1 for _ in lines)
    if count > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
