"""The best weights on a mask: exact, never worse than SparseGPT, and good enough."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import oracle, solve
from sparse_jax.solvers import refit as module
from sparse_jax.solvers.refit import refit
from sparse_jax.sparsity import NM, Unstructured
from tests.solvers.helpers import PATTERNS, make_problem, to_grid


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_weights_are_the_least_squares_solution(pattern):
    W, H = make_problem(n_dead=3)
    options = {"iterations": 300, "tolerance": 0.0}
    solution = solve("sparsegpt_refit", W, H, pattern, **options)
    first = solve("sparsegpt", W, H, pattern)
    np.testing.assert_array_equal(solution.mask, first.mask)
    best = oracle.least_squares(W, H, solution.mask)
    error = oracle.relative_error(W, best, H)
    assert solution.relative_error == pytest.approx(error, rel=1e-3)
    # By default it stops when little is left to gain.
    quick = solve("sparsegpt_refit", W, H, pattern)
    assert error < quick.relative_error < error + 0.05 * (first.relative_error - error)


@pytest.mark.parametrize(
    "pattern", [Unstructured(0.5), Unstructured(0.7), NM(2, 4)], ids=str
)
def test_the_bar_on_the_golden_problems(pattern, shared_data):
    with np.load(shared_data / "sparsegpt_golden/512_u50.npz", allow_pickle=False) as f:
        W, H = f["W"], f["H"]
    published = solve("sparsegpt", W, H, pattern, reference=True).relative_error
    # N:M masks are the same in both modes.
    options = {"reference": isinstance(pattern, NM)}
    refitted = solve("sparsegpt_refit", W, H, pattern, **options)
    assert refitted.relative_error <= 0.78 * published


def test_leading_axes_are_mapped_over_and_any_mask_will_do():
    problems = [make_problem(16, 40, seed) for seed in (0, 1)]
    W = np.stack([W for W, _ in problems])
    H = np.stack([H for _, H in problems])
    for hessian in (H, H[0]):
        masked = solve("magnitude", W, hessian, Unstructured(0.5))
        refitted = refit({"weights": masked}, 0.0, 200, 0.0)["weights"]
        for i, mask in enumerate(np.asarray(masked.mask)):
            h = hessian[i] if hessian.ndim == 3 else hessian
            best = oracle.least_squares(W[i], h, mask)
            error = oracle.relative_error(W[i], best, h)
            assert refitted.relative_error[i] == pytest.approx(error, rel=1e-3)


def rows_error(W, solution, H):
    D = np.asarray(solution.weights, np.float64) - np.asarray(W, np.float64)
    return np.sum(D @ np.asarray(H, np.float64) * D, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_row_is_worse_than_sparsegpt(dtype):
    W, H = make_problem()
    ones = np.ones_like(H)
    few = make_problem(n_in=96, seed=3)[0][:20]
    W = jnp.asarray(W, dtype)
    for hessian in (H, ones, few.T @ few, ones + 1e-3 * np.diag(np.diag(H))):
        for quantizer in (None, to_grid) if dtype == "float32" else (None,):
            arguments = (W, hessian, NM(2, 4))
            first = solve("sparsegpt", *arguments, quantizer=quantizer)
            second = solve("sparsegpt_refit", *arguments, quantizer=quantizer)
            before = rows_error(W, first, hessian)
            # float32 sees the errors up to the rounding of the outputs' energy.
            slack = 1e-6 * np.sum(np.asarray(W, np.float64) @ hessian * W, 1)
            assert (rows_error(W, second, hessian) <= before + slack).all()
            assert second.weights.dtype == dtype


def test_rounding_on_the_mask_beats_rounding_while_pruning():
    W, H = make_problem()
    for pattern in (Unstructured(0.5), NM(2, 4)):
        first = solve("sparsegpt", W, H, pattern, quantizer=to_grid)
        second = solve("sparsegpt_refit", W, H, pattern, quantizer=to_grid)
        np.testing.assert_array_equal(second.mask, first.mask)
        weights = np.asarray(second.weights)
        np.testing.assert_array_equal(weights[~np.asarray(second.mask)], 0.0)
        np.testing.assert_array_equal(weights * 2, np.round(weights * 2))
        assert second.relative_error < 0.9 * first.relative_error


def test_panels_of_a_large_matrix_change_nothing_but_rounding(monkeypatch):
    # More inputs than the widest panel of H, more rows than a panel holds.
    W, H = make_problem(24, 1536)
    options = {"iterations": 20, "tolerance": 0.0}
    masked = {"weights": solve("magnitude", W, H, Unstructured(0.5))}
    whole = refit(masked, 0.0, **options)["weights"]
    monkeypatch.setattr(module, "_ROWS", 8)
    monkeypatch.setattr(module, "_WIDE", 1024)
    module._least_squares.clear_cache()  # it was compiled for the whole matrix
    cut = refit(masked, 0.0, **options)["weights"]
    module._least_squares.clear_cache()
    scale = np.abs(whole.weights).max()
    np.testing.assert_allclose(cut.weights, whole.weights, atol=1e-4 * scale)


def test_panels_take_rows_of_every_device():
    W, H = make_problem()
    shape = W.shape
    hessian, ridge = jnp.asarray(H), np.zeros(1, np.float32)

    def number_rows(w_OI, hessian_II, ridge):
        return w_OI + jnp.arange(len(w_OI))[:, None]

    for shards in (1, 2):
        mapped = module._map_matrices(
            number_rows, (jnp.zeros(shape),), hessian, ridge, shards
        )
        # A panel is all of a small matrix, its rows in their order.
        np.testing.assert_array_equal(mapped[:, 0], np.arange(shape[0]))


def test_results_do_not_depend_on_the_panels_of_devices(monkeypatch):
    W, H = make_problem()
    first = solve("sparsegpt", W, H, Unstructured(0.5))
    whole = refit({"w": first}, 0.01)["w"]
    monkeypatch.setattr(module, "row_shards", lambda matrix: 2)
    monkeypatch.setattr(module, "_ROWS", 4)
    cut = refit({"w": first}, 0.01)["w"]
    assert cut.relative_error == pytest.approx(whole.relative_error, rel=1e-5)
    assert outputs_apart(W, cut, whole, H) < 1e-5
    np.testing.assert_array_equal(cut.weights == 0, whole.weights == 0)


def outputs_apart(W, one, other, H):
    """Distance of two solutions' outputs, relative to those of W."""
    weights = np.asarray(one.weights, np.float64)
    return np.sqrt(oracle.relative_error(W, W + weights - other.weights, H))


@pytest.mark.parametrize("n_in", [96, 256])
def test_rounding_in_the_hessian_stays_rounding_in_the_weights(n_in):
    # Another batch size, or another mesh, adds up the same H in another order.
    W, H = make_problem(n_in=n_in)
    noise = np.random.default_rng(1).normal(size=H.shape)
    rounded = (H * (1 + 4e-8 * (noise + noise.T))).astype(np.float32)
    assert 1e-8 < np.abs(rounded - H).max() / H.max() < 1e-6
    one = solve("sparsegpt_refit", W, H, Unstructured(0.7))
    other = solve("sparsegpt_refit", W, rounded, Unstructured(0.7))
    np.testing.assert_array_equal(one.mask, other.mask)
    assert other.relative_error == pytest.approx(one.relative_error, rel=1e-4)
    assert outputs_apart(W, one, other, H) < 1e-5


def test_a_row_stops_smoothly():
    # With a bound, rounding would decide on a whole step of some row of a large model.
    W, H = make_problem(1, 96)
    first = {"w": solve("sparsegpt", W, H, Unstructured(0.7))}
    found = [refit(first, 0.01, 30, t)["w"] for t in np.geomspace(3e-2, 1e-3, 200)]
    jumps = [outputs_apart(W, a, b, H) for a, b in pairwise(found)]
    assert 0 < max(jumps) < 0.15 * outputs_apart(W, found[0], found[-1], H)
