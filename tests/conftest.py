"""Settings and fixtures of the whole suite."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite is compilation, of programs that run once. `=0` in the environment
# runs it on the code that users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Before anything of the package is imported: check jaxtyping's shapes at run time.
from jaxtyping import install_import_hook

install_import_hook("sparse_jax", "beartype.beartype")

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
