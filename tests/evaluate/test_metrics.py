"""Means, standard errors and pass@k: against their definitions."""

import itertools
import math

import numpy as np
import pytest

from sparse_jax.evaluate import metrics
from sparse_jax.types import InputError


def test_mean_and_its_error():
    values = np.random.default_rng(0).normal(size=37)
    found = metrics.mean(values.tolist())
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(37))
    assert metrics.mean([3.0]) == metrics.Estimate(value=3.0, stderr=None)


def test_perplexity_error_is_what_a_bootstrap_gives():
    rng = np.random.default_rng(0)
    values = rng.normal(-3, 1, 1000)
    found = metrics.perplexity(values.tolist())
    assert found.value == pytest.approx(math.exp(-values.mean()))
    drawn = rng.choice(values, (2000, 1000)).mean(axis=1)
    assert found.stderr == pytest.approx(np.exp(-drawn).std(), rel=0.05)
    assert metrics.perplexity([-900.0]).value == math.inf


def test_error_of_groups():
    rng = np.random.default_rng(0)
    groups = [rng.random(n) for n in (5, 9, 30)]
    found = metrics.mean_of_groups([group.tolist() for group in groups])
    assert found.value == pytest.approx(np.concatenate(groups).mean())
    # The pooled variance inside groups, over all documents.
    inside = sum(((group - group.mean()) ** 2).sum() for group in groups) / (44 - 3)
    assert found.stderr == pytest.approx(math.sqrt(inside / 44))
    found = metrics.mean_of_means([group.tolist() for group in groups])
    assert found.value == pytest.approx(np.mean([group.mean() for group in groups]))
    errors = [group.std(ddof=1) / math.sqrt(len(group)) for group in groups]
    assert found.stderr == pytest.approx(np.linalg.norm(errors) / 3)
    single = [[1.0], [0.0]]
    assert metrics.mean_of_groups(single).stderr is None
    assert metrics.mean_of_means(single).stderr is None


@pytest.mark.parametrize("passed", range(7))
@pytest.mark.parametrize("k", [1, 2, 6])
def test_pass_at_k_counts_all_choices(passed, k):
    outcomes = [True] * passed + [False] * (6 - passed)
    choices = [any(chosen) for chosen in itertools.combinations(outcomes, k)]
    assert metrics.pass_at_k(6, passed, k) == pytest.approx(np.mean(choices))


def test_pass_at_k_of_too_few_samples():
    with pytest.raises(InputError, match="k must be from 1 to 5 samples, found 10"):
        metrics.pass_at_k(5, 1, 10)
