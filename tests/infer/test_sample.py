"""Which tokens may be drawn, how often, and that the batch does not matter."""

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.infer.sample import Sampling, _keep, sample, stack

keep = jax.jit(_keep)


def expected_keep(row, k, p):
    """By sorting."""
    order = np.argsort(-row, kind="stable")
    kept = order[: k or None]
    mass = np.exp(row[kept] - row.max())
    mass = np.cumsum(mass / mass.sum())
    return set(kept[: int(np.searchsorted(mass, p)) + 1 if p < 1 else None].tolist())


def test_kept_tokens_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(0, 3, (12, 40)).astype(np.float32)
    k_B = np.array([0, 1, 5, 40, 99, 0, 0, 0, 3, 7, 20, 1], np.int32)
    p_B = np.array([1, 1, 1, 1, 1, 0.9, 0.5, 1e-6, 0.9, 0.5, 0.99, 0.1], np.float32)
    kept_BV = np.asarray(keep(logits_BV, k_B, p_B))
    for row, k, p, kept in zip(logits_BV, k_B, p_B, kept_BV, strict=True):
        assert set(np.flatnonzero(kept).tolist()) == expected_keep(
            row, int(k), float(p)
        )


def test_equally_likely_tokens_stay_together():
    kept = keep(jnp.array([[1.0, 1.0, 0.0]]), jnp.array([1]), jnp.array([1.0]))
    assert kept.tolist() == [[True, True, False]]


def test_frequencies_are_the_probabilities():
    n, temperature = 4000, 1.7
    logits = np.array([2.0, 0.5, 1.0, -3.0, 0.0], np.float32)
    settings = stack([Sampling(temperature=temperature, seed=s) for s in range(n)])
    drawn = sample(np.tile(logits, (n, 1)), settings, np.full(n, 3, np.int32))
    found = np.bincount(np.asarray(drawn), minlength=5) / n
    wanted = np.exp(logits / temperature)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.03)


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(1)
    logits_BV = rng.normal(0, 2, (64, 30)).astype(np.float32)
    positions = np.arange(64, dtype=np.int32)
    requests = [
        Sampling(temperature=1.0, seed=3),
        Sampling(),
        Sampling(temperature=0.7, top_k=4, seed=2**32 - 1),
        Sampling(temperature=2.0, top_p=0.6),
    ] * 16
    together = sample(logits_BV, stack(requests), positions)
    assert together[1] == logits_BV[1].argmax()
    rows = rng.permutation(64)
    shuffled = [requests[row] for row in rows]
    again = sample(logits_BV[rows], stack(shuffled), positions[rows])
    assert again.tolist() == together[rows].tolist()
    company = [Sampling(temperature=1.0, seed=9)] * 63
    last = sample(logits_BV, stack([*company, requests[63]]), positions)
    assert last[63] == together[63]
    # Other positions and other seeds draw other numbers.
    flat_BV = np.zeros((64, 30), np.float32)
    same = [Sampling(temperature=1.0)] * 64
    assert len(set(sample(flat_BV, stack(same), positions).tolist())) > 15
    seeds = [Sampling(temperature=1.0, seed=seed) for seed in range(64)]
    assert len(set(sample(flat_BV, stack(seeds), positions * 0).tolist())) > 15
