"""ADMM: the search equals the slow one, and finds better masks than SparseGPT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import oracle, solve
from sparse_jax.solvers.inverse import inverse
from sparse_jax.sparsity import NM, Block, Unstructured
from tests.solvers.helpers import make_problem, to_grid


@pytest.mark.parametrize(
    "pattern", [Unstructured(0.7), NM(2, 4), Block(8, 4, 0.5)], ids=str
)
def test_the_search_equals_the_oracle(pattern):
    W, H = make_problem(n_dead=3)
    weights, mask = oracle.admm(W, H, pattern)
    solution = solve("admm", W, H, pattern)
    # Where supports compete closely, rounding decides.
    assert np.mean(mask != solution.mask) <= 5e-3
    error = oracle.relative_error(W, weights, H)
    best = oracle.least_squares(W, H, solution.mask)
    assert oracle.relative_error(W, best, H) == pytest.approx(error, rel=0.01)
    assert solution.relative_error == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize(
    ("pattern", "bar"),
    [(Unstructured(0.5), 0.64), (Unstructured(0.7), 0.64), (NM(2, 4), 0.7)],
    ids=str,
)
def test_the_bar_on_the_golden_problems(pattern, bar, shared_data):
    with np.load(shared_data / "sparsegpt_golden/512_u50.npz", allow_pickle=False) as f:
        W, H = f["W"], f["H"]
    published = solve("sparsegpt", W, H, pattern, reference=True).relative_error
    assert solve("admm", W, H, pattern).relative_error <= bar * published


def test_rounding_keeps_the_pattern_and_the_gain():
    W, H = make_problem()
    solution = solve("admm", W, H, NM(2, 4), quantizer=to_grid)
    assert (np.asarray(solution.mask).reshape(48, -1, 4).sum(-1) == 2).all()
    weights = np.asarray(solution.weights)
    np.testing.assert_array_equal(weights[~np.asarray(solution.mask)], 0.0)
    np.testing.assert_array_equal(weights * 2, np.round(weights * 2))
    first = solve("sparsegpt", W, H, NM(2, 4), quantizer=to_grid)
    assert solution.relative_error < 0.9 * first.relative_error


def test_the_inverse_of_any_size():
    for n in (1, 65, 203):
        x = np.random.default_rng(0).normal(size=(2 * n + 1, n))
        matrix = x.T @ x / n + 0.1 * np.eye(n)
        found = jax.jit(inverse)(jnp.asarray(matrix, jnp.float32))
        np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=1e-3, atol=1e-5)


def test_the_inverse_of_an_indefinite_matrix_is_not_finite():
    for position in (0, 70, 149):
        matrix = np.eye(150, dtype=np.float32)
        matrix[position, position] = -1.0
        assert not np.isfinite(jax.jit(inverse)(jnp.asarray(matrix))).any()
