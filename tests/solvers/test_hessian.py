import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import accumulate
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
    for i, u in enumerate(np.asarray(factor.u[0])):
        columns = slice(i * block, min((i + 1) * block, 10))
        size = columns.stop - columns.start
        np.testing.assert_allclose(
            u[:size, :size], upper[columns, columns], rtol=1e-3, atol=1e-5
        )
    np.testing.assert_array_equal(factor.dead[0, :10], np.arange(10) == 3)
