"""Fabricated reports and their histories, as fixtures."""

import importlib.util
import pathlib

import pytest


def _load(name):
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fabricated = _load("fabricated")
fabricated_methods = _load("fabricated_methods")


@pytest.fixture
def report():
    return fabricated.report()


@pytest.fixture(scope="session")
def histories():
    return fabricated.histories()


@pytest.fixture(scope="session")
def ablation():
    """Report and histories of methods by patterns by two seeds."""
    return fabricated_methods.ablation(seeds=2, every=100_000)
