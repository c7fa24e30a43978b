"""Problems that the tests of the solvers share."""

import jax.numpy as jnp
import numpy as np

from sparse_jax.solvers import SOLVERS
from sparse_jax.sparsity import NM, Block, Group, Unstructured

ALL = tuple(SOLVERS)
PATTERNS = [
    Unstructured(0.5),
    Unstructured(0.7),
    NM(2, 4),
    NM(5, 16),
    Group(8, 0.5),
    Block(8, 4, 0.5),
]


def make_problem(n_out=48, n_in=96, seed=0, n_dead=0):
    """Weights, and a Hessian whose inputs are strongly correlated."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-np.arange(n_in) / 20)[:, None]
    mixing = rng.normal(size=(n_in, n_in)) * decay + 0.1 * np.eye(n_in)
    x = rng.normal(size=(300, n_in)) @ mixing * np.exp(0.4 * rng.normal(size=n_in))
    x[:, rng.choice(n_in, n_dead, replace=False)] = 0.0
    W = rng.normal(size=(n_out, n_in)).astype(np.float32)
    return W, (2 / 300 * x.T @ x).astype(np.float32)


def to_grid(values, index):
    return jnp.round(values * 2) / 2
