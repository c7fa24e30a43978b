"""Whole groups ranked by the inverse Hessian: against an explicit float64 inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.quant import GridConfig, fit, quantizer, round_to_grid
from sparse_jax.solvers import oracle, solve
from sparse_jax.sparsity import NM, Block, Group, Unstructured
from sparse_jax.types import InputError
from tests.solvers.helpers import make_problem

GROUPS = Group(16, 0.5)


def scores(W, H, size, power, damping=0.01):
    """Mean saliency of every group [out, in / size], in float64."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    dead = np.diag(H) == 0
    H = H + np.diag(dead)
    H = H + damping * np.mean(np.diag(H)) * np.eye(len(H))
    saliency = W**2 / np.diag(np.linalg.inv(H)) ** power
    saliency[:, dead] = 0
    return saliency.reshape(len(W), -1, size).mean(-1)


def explicit_mask(group_scores, size, sparsity, per_row):
    """Drops the lowest groups one by one."""
    kept = np.ones_like(group_scores, bool)
    problems = range(len(kept)) if per_row else [slice(None)]
    for rows in problems:
        flat, out = group_scores[rows].ravel(), kept[rows].ravel().copy()
        out[np.argsort(flat)[: int(flat.size * sparsity)]] = False
        kept[rows] = out.reshape(kept[rows].shape)
    return np.repeat(kept, size, axis=1)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_the_mask_is_the_oracle_s(squared, per_row):
    W, H = make_problem(n_dead=3)
    options = {"squared_denominator": squared, "per_row": per_row}
    solution = solve("gqsa", W, H, GROUPS, compensate=False, **options)
    found = scores(W, H, 16, 2 if squared else 1)
    np.testing.assert_array_equal(solution.mask, explicit_mask(found, 16, 0.5, per_row))
    np.testing.assert_array_equal(solution.weights, np.where(solution.mask, W, 0))
    assert float(solution.damping) == pytest.approx(0.01)


def column_rule(W, H, mask):
    """SparseGPT's compensation for a mask, column by column, in float64."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    H = H + 0.01 * np.mean(np.diag(H)) * np.eye(len(H))
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    for j in range(W.shape[1]):
        error = np.where(mask[:, j], 0, W[:, j]) / U[j, j]
        W[:, j:] -= np.outer(error, U[j, j:])
    return W


def test_compensation_is_the_column_rule_on_that_mask():
    W, H = make_problem()
    plain = solve("gqsa", W, H, GROUPS, compensate=False)
    moved = solve("gqsa", W, H, GROUPS)
    np.testing.assert_array_equal(moved.mask, plain.mask)
    error = oracle.relative_error(W, column_rule(W, H, np.asarray(plain.mask)), H)
    assert moved.relative_error == pytest.approx(error, rel=1e-3)
    assert moved.relative_error < 0.7 * plain.relative_error
    magnitude = solve("magnitude", W, H, GROUPS)
    assert plain.relative_error < magnitude.relative_error


@pytest.mark.parametrize("compensate", [False, True])
def test_what_is_kept_is_rounded_in_the_same_solve(compensate):
    W, H = make_problem()
    grid = fit(jnp.asarray(W), GridConfig(bits=4, group=16, symmetric=False))
    options = {"quantizer": quantizer(grid), "compensate": compensate}
    solution = solve("gqsa", W, H, GROUPS, **options)
    np.testing.assert_array_equal(
        solution.weights,
        np.where(solution.mask, round_to_grid(solution.weights, grid), 0),
    )
    plain = solve("gqsa", W, H, GROUPS, compensate=compensate)
    np.testing.assert_array_equal(solution.mask, plain.mask)
    assert solution.relative_error > plain.relative_error
    if compensate:
        after = jnp.where(plain.mask, round_to_grid(plain.weights, grid), 0)
        assert solution.relative_error < oracle.relative_error(W, after, H)


@pytest.mark.parametrize(
    "pattern", [Unstructured(0.7), NM(2, 4), Group(8, 0.75), Block(8, 4, 0.5)], ids=str
)
def test_any_pattern_has_its_counts(pattern):
    W, H = make_problem()
    kept = np.asarray(solve("gqsa", W, H, pattern).mask)
    assert (~kept).sum() == int(kept.size * pattern.sparsity)


def test_rows_are_even_unless_they_compete():
    W, H = make_problem()
    for pattern in (Unstructured(0.5), GROUPS):
        kept = np.asarray(solve("gqsa", W, H, pattern).mask)
        assert (kept.sum(1) == 48).all()
        kept = np.asarray(solve("gqsa", W, H, pattern, per_row=False).mask)
        assert kept.sum() == kept.size // 2 and not (kept.sum(1) == 48).all()
    with pytest.raises(InputError, match="sparsegpt ranks all rows together"):
        solve("sparsegpt", W, H, Group(16, 0.5, per_row=True))


def test_leading_axes_and_prior_masks():
    problems = [make_problem(seed=seed) for seed in (0, 1)]
    W, H = (np.stack(leaf) for leaf in zip(*problems, strict=True))
    first = solve("gqsa", W, H, Group(16, 0.25))
    both = solve("gqsa", first.weights, H, GROUPS, prior_mask=first.mask)
    assert not (both.mask & ~first.mask).any()
    assert not np.asarray(both.weights)[~np.asarray(both.mask)].any()
    for i in (0, 1):
        alone = solve("gqsa", first.weights[i], H[i], GROUPS, prior_mask=first.mask[i])
        np.testing.assert_array_equal(both.mask[i], alone.mask)
        np.testing.assert_allclose(both.weights[i], alone.weights, atol=1e-5)


def test_bad_input_is_one_sentence():
    W, H = make_problem()
    with pytest.raises(InputError, match="'gqsa' needs a Hessian"):
        solve("gqsa", W, None, GROUPS)
    with pytest.raises(InputError, match="damping must be a finite number >= 0"):
        solve("gqsa", W, H, GROUPS, damping=-1.0)
    assert jax.tree.leaves(GROUPS) == [0.5]  # sparsity alone is data
