import dataclasses
import shutil

import pytest

from sparse_jax import recipe as recipe_lib
from tests.recipe import helpers


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return helpers.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def recipe(corpus):
    return helpers.make_recipe(corpus)


@pytest.fixture(scope="session")
def finished(recipe, tmp_path_factory):
    """A finished run; tests read it, or take a copy."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    recipe_lib.run(recipe, directory, quiet=True)
    return directory


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run to change."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="session")
def short(recipe):
    """The dense stage alone, for what goes wrong before or at the first stage."""
    return dataclasses.replace(
        recipe,
        stages={"dense": recipe.stages["dense"]},
        order=("dense",),
        final="dense",
    )
