"""Degenerate problems: every solver has a defined result for each of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import solve
from sparse_jax.sparsity import NM, Unstructured
from sparse_jax.types import InputError
from tests.solvers.helpers import ALL, make_problem

HALF = Unstructured(0.5)
MOVING = ("sparsegpt", "sparsegpt_refit", "admm")
"""Solvers that use H to move weights."""

W, H = make_problem(16, 32)
ONES = np.ones_like(H)


def solve_half(name, weights=W, hessian=H, **options):
    """Prunes half of a matrix, and checks what always holds."""
    solution = solve(name, weights, hessian, HALF, **options)
    values, kept = np.asarray(solution.weights, np.float32), np.asarray(solution.mask)
    assert np.isfinite(values).all()
    assert np.isfinite(solution.relative_error)
    assert (~kept).sum() == values.size // 2
    np.testing.assert_array_equal(values[~kept], 0.0)
    return solution


@pytest.mark.parametrize("name", ALL)
def test_dead_inputs(name):
    hessian = H.copy()
    hessian[[3, 20]] = hessian[:, [3, 20]] = 0.0
    solution = solve_half(name, hessian=hessian)
    dead = np.asarray(solution.weights)[:, [3, 20]]
    if name == "magnitude":  # it does not look at the inputs
        np.testing.assert_array_equal(solution.mask, solve_half(name).mask)
    else:
        np.testing.assert_array_equal(dead, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_no_live_input_and_no_weight_at_all(name):
    no_input = solve_half(name, hessian=0 * H)
    assert no_input.relative_error == 0.0
    if name in MOVING:
        np.testing.assert_array_equal(no_input.weights, 0.0)
    no_weight = solve_half(name, weights=0 * W)
    assert no_weight.relative_error == 0.0
    np.testing.assert_array_equal(no_weight.weights, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_duplicated_inputs_and_constant_rows(name):
    x = np.random.default_rng(0).normal(size=(100, 16)).repeat(2, 1)
    solution = solve_half(name, hessian=(x.T @ x).astype(np.float32))
    if name in ("sparsegpt_refit", "admm"):
        # Half of the inputs carry everything; a good mask keeps one of each pair.
        assert solution.relative_error < 0.2
    assert 0 < solve_half(name, weights=np.ones_like(W)).relative_error < 1
    rank_one = solve_half(name, hessian=ONES)
    if name in MOVING:
        # Only the sum of a row's weights matters.
        assert rank_one.relative_error < 2e-3


@pytest.mark.parametrize("name", ALL)
def test_the_scale_of_the_hessian_does_not_matter(name):
    expected = solve_half(name)
    for scale in (1e-20, 1e20):
        solution = solve_half(name, hessian=H * np.float32(scale))
        assert np.mean(solution.mask != expected.mask) <= 0.02
        assert solution.relative_error == pytest.approx(
            expected.relative_error, rel=0.02
        )


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_prune_leaves_the_weights(name):
    for pattern in (Unstructured(0.0), NM(4, 4)):
        solution = solve(name, W, H, pattern)
        assert solution.mask.all()
        np.testing.assert_allclose(solution.weights, W, rtol=1e-6, atol=1e-6)
        assert solution.relative_error < 1e-9


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_keep_their_dtype(name, dtype):
    narrow = jnp.asarray(W, dtype)
    solution = solve_half(name, weights=narrow)
    assert solution.weights.dtype == dtype
    wide = solve_half(name, weights=narrow.astype(jnp.float32))
    np.testing.assert_array_equal(solution.mask, wide.mask)
    assert solution.relative_error == pytest.approx(
        wide.relative_error, rel=0.02, abs=2e-4
    )


@pytest.mark.parametrize("name", ALL)
def test_a_single_input(name):
    solution = solve(name, W[:, :1], H[:1, :1], HALF)
    kept = np.asarray(solution.mask)[:, 0]
    assert kept.sum() == 8
    if name not in ("wanda", "gqsa"):  # which rank inside rows
        squares = np.sort(W[:, 0] ** 2)
        assert solution.relative_error < 1.05 * squares[:8].sum() / squares.sum()
    np.testing.assert_allclose(solution.weights[kept], W[kept, :1], rtol=1e-6)


@pytest.mark.parametrize("name", MOVING)
def test_an_indefinite_hessian_raises_damping_and_says_so(name, caplog):
    indefinite = ONES * H.max() - np.diag(np.full(32, 0.5 * H.max(), np.float32))
    indefinite = indefinite.astype(np.float32)
    indefinite[::2, 1::2] *= -1
    indefinite[1::2, ::2] *= -1
    indefinite = 2 * np.diag(np.diag(indefinite)) - indefinite
    assert np.linalg.eigvalsh(indefinite).min() < 0
    both = np.stack([H, indefinite])
    solution = solve(name, np.stack([W, W]), both, HALF, damping=0.01)
    assert solution.damping[0] == pytest.approx(0.01)
    assert solution.damping[1] > 1
    assert "weights: the Hessian is not positive definite, damping raised" in (
        caplog.text
    )
    assert np.isfinite(solution.weights).all()
    np.testing.assert_array_equal(solve_half(name, damping=0.01).mask, solution.mask[0])


@pytest.mark.parametrize("name", MOVING)
def test_a_hopeless_hessian_is_refused(name):
    hessian = np.eye(4, dtype=np.float32) + 1e9 * np.eye(4, dtype=np.float32)[::-1]
    with pytest.raises(InputError, match="not positive definite even with damping"):
        solve(name, W[:, :4], hessian, HALF)


@pytest.mark.parametrize("name", ALL)
def test_a_zero_diagonal_beside_other_entries_is_refused(name):
    with pytest.raises(InputError, match="a row that is not zero where its diagonal"):
        solve(name, W, H * (1 - np.eye(32, dtype=np.float32)), HALF)


def test_a_singular_hessian_raises_the_damping_of_zero(caplog):
    solution = solve_half("sparsegpt", hessian=ONES, damping=0.0)
    assert float(solution.damping) > 0
    assert "damping raised" in caplog.text
    # The sum of the inputs' weights is all that matters, and is all that is kept.
    np.testing.assert_allclose(solution.weights.sum(1), W.sum(1), atol=0.5)
    solution = solve_half("admm", hessian=ONES)  # what it adds to H anyway is enough
    assert float(solution.damping) == 0.0
    assert solution.relative_error < 1e-9


@pytest.mark.parametrize("name", ALL)
def test_values_that_are_not_finite_are_named(name):
    for bad in (np.nan, np.inf):
        broken_W, broken_H = W.copy(), H.copy()
        broken_W[5, 3] = broken_H[0, 0] = bad
        with pytest.raises(InputError, match=r"^weights contains NaN or infinite"):
            solve(name, broken_W, H, HALF)
        with pytest.raises(InputError, match=r"^the Hessian of weights contains NaN"):
            solve(name, W, broken_H, HALF)
