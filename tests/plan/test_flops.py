"""Operations counted in a jaxpr equal those of a formula."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sparse_jax.evaluate import matmul_weights
from sparse_jax.plan import flops
from tests.plan.jobs import JOB


def attention(job, passes):
    """Scores and context of a causal model, all T x T of them, in `passes` passes."""
    c = job.model
    width = c.n_heads * c.head_width
    return 4 * passes * c.n_layers * width * job.seq_len * job.tokens


def weights(job, passes):
    """Blocks in `passes` passes; the loss in three, whatever is computed again."""
    head = job.model.d_model * job.model.vocab_size
    blocks = matmul_weights(job.model) - head
    return 2 * job.tokens * (passes * blocks + 3 * head)


@pytest.mark.parametrize(("remat", "passes"), [("none", 3), ("block", 4)])
def test_a_step_executes_what_the_formula_says(remat, passes):
    compute = dataclasses.replace(JOB.compute, remat=remat)
    job = dataclasses.replace(JOB, compute=compute)
    # The down projection of a block is not needed to compute the block again.
    c = job.model
    unused = (passes - 3) * 2 * job.tokens * c.n_layers * c.d_ff * c.d_model
    expected = weights(job, passes) + attention(job, passes) - unused
    assert flops.executed(job) == expected


def test_splash_skips_blocks_above_the_diagonal():
    compute = dataclasses.replace(JOB.compute, attention="splash", remat="none")
    job = dataclasses.replace(JOB, seq_len=2048, batch_size=8, compute=compute)
    # Two products forward and seven backward, where a textbook has two and four; 10 of
    # 4 x 4 blocks are on or below the diagonal.
    share = (flops.executed(job) - weights(job, 3)) / attention(job, 3)
    assert share == pytest.approx(9 / 6 * 10 / 16, rel=1e-3)


def test_cudnn_counts_as_splash():
    job = dataclasses.replace(JOB, seq_len=256)
    found = {
        flops.executed(
            dataclasses.replace(
                job, compute=dataclasses.replace(job.compute, attention=name)
            )
        )
        for name in ("splash", "cudnn")
    }
    assert len(found) == 1


def test_branches_count_as_the_longest():
    def f(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.products(jax.make_jaxpr(f)(jnp.ones((2, 2)))) == 2 * 16
