import jax
import pytest

from sparse_jax import models, train
from sparse_jax.prune import PruneConfig
from sparse_jax.sparsity.masks import make_masks, map_masks, project_kernel
from sparse_jax.tree import match_rules
from tests.train.helpers import MODEL, OPTIMIZER


@pytest.fixture(scope="session")
def params():
    return models.init(jax.random.key(0), MODEL)


@pytest.fixture(scope="session")
def masks(params):
    """70 % of every linear pruned by magnitude."""
    rules = PruneConfig(sparsity=0.7).pattern_rules()
    return map_masks(
        lambda w, m, p: None if m is None else project_kernel(p, abs(w)),
        params,
        make_masks(params, rules),
        match_rules(rules, params),
    )


@pytest.fixture
def state(params, masks):
    return train.init_state(params, masks, OPTIMIZER, rng=jax.random.key(1))
