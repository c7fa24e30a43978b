import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import accumulate, symmetrize
from sparse_jax.solvers import hessian as hessian_module
from sparse_jax.solvers.cholesky import reverse_cholesky
from sparse_jax.solvers.hessian import factorize


def test_the_running_mean_does_not_depend_on_the_batches():
    x = np.random.default_rng(0).normal(size=(7, 5, 6)).astype(np.float32)
    flat = x.reshape(-1, 6).astype(np.float64)
    for splits in ([7], [3, 4], [1, 2, 4]):
        hessian, start = jnp.zeros((6, 6)), 0
        for size in splits:
            batch = jnp.asarray(x[start : start + size])
            hessian = accumulate(hessian, float(start), batch)
            start += size
        np.testing.assert_allclose(hessian, 2 / 7 * flat.T @ flat, rtol=1e-5, atol=1e-5)


def test_parts_of_a_batch_add_up():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 4)), jnp.float32)
    whole = accumulate(accumulate(jnp.zeros((4, 4)), 0.0, x[:2]), 2.0, x[2:])
    parts = []
    for part in range(2):  # of the sequences of every batch
        hessian, n_before = jnp.zeros((4, 4)), 0
        for batch in (x[:2], x[2:]):
            hessian = accumulate(
                hessian, float(n_before), batch[part::2], float(len(batch))
            )
            n_before += len(batch)
        parts.append(hessian)
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [4, 5, 10])
def test_the_factor_is_that_of_the_inverse(block):
    x = np.random.default_rng(0).normal(size=(40, 10))
    x[:, 3] = 0.0
    hessian = x.T @ x
    factor = factorize(jnp.asarray(hessian[None], jnp.float32), 0.1, block, "test")
    hessian[3, 3] = 1.0
    hessian += 0.1 * np.mean(np.diag(hessian)) * np.eye(10)
    r = np.asarray(factor.rt[0]).T
    np.testing.assert_allclose((r @ r.T)[:10, :10], hessian, rtol=1e-4, atol=1e-4)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for i, ut in enumerate(np.asarray(factor.ut[0])):
        columns = slice(i * block, min((i + 1) * block, 10))
        size = columns.stop - columns.start
        np.testing.assert_allclose(
            ut[:size, :size].T, upper[columns, columns], rtol=1e-3, atol=1e-5
        )
    np.testing.assert_array_equal(factor.dead[0, :10], np.arange(10) == 3)


def correlated(n, seed=0):
    mixing = np.random.default_rng(seed).normal(size=(n, n)) / np.arange(1, n + 1)
    return (mixing @ mixing.T + 0.01 * np.eye(n)).astype(np.float32)


@pytest.mark.parametrize(("n", "tile"), [(12, 12), (12, 1), (40, 8)])
def test_the_factorisation_in_tiles(n, tile):
    matrix = correlated(n)
    rt, positive = reverse_cholesky(jnp.tril(matrix), tile)
    r = np.asarray(rt, np.float64).T
    assert positive
    np.testing.assert_array_equal(np.tril(r, -1), 0.0)
    np.testing.assert_allclose(r @ r.T, matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 7, 8, 21, 39])
def test_a_matrix_that_is_not_positive_definite_is_noticed(place):
    # Wherever the bad pivot comes, in the first tile to be factored or in the last.
    matrix = correlated(40)
    matrix[place, place] = -1.0
    assert not reverse_cholesky(jnp.tril(matrix), 8)[1]


def test_a_duplicated_input_needs_damping(caplog):
    x = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    x[:, 9] = x[:, 30]
    hessian = jnp.asarray(x.T @ x)[None]
    factor = factorize(hessian, 0.0, 8, "test")
    assert np.isfinite(factor.rt).all() and np.isfinite(factor.ut).all()
    assert (factor.damping[0] > 0) == ("damping raised" in caplog.text)
    assert factorize(hessian, 0.01, 8, "test").damping[0] == np.float32(0.01)


def test_one_matrix_is_held_in_memory():
    n = 256
    arguments = jnp.zeros((1, n, n)), jnp.zeros(1), 32
    memory = hessian_module._factorize.lower(*arguments).compile().memory_analysis()
    assert memory.output_size_in_bytes < 1.3 * 4 * n**2
    # Tiles of 128 columns are a large share of so small a matrix.
    assert memory.temp_size_in_bytes < 1.6 * 4 * n**2


def test_a_large_hessian_is_accumulated_in_tiles():
    x = jax.random.normal(jax.random.key(0), (2, 3, 1536))
    h = accumulate(jnp.zeros((1536, 1536)), 0.0, x[:1])
    h = symmetrize(accumulate(h, 1.0, x[1:]))
    flat = np.asarray(x, np.float64).reshape(-1, 1536)
    np.testing.assert_allclose(h, flat.T @ flat, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(h, h.T)
