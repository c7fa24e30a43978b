"""A fabricated report and its histories, as fixtures."""

import importlib.util
import pathlib

import pytest

_spec = importlib.util.spec_from_file_location(
    "fabricated", pathlib.Path(__file__).with_name("fabricated.py")
)
fabricated = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fabricated)


@pytest.fixture
def report():
    return fabricated.report()


@pytest.fixture(scope="session")
def histories():
    return fabricated.histories()
